"""Why heads attend where they attend: attention scores by the components that wrote them."""
