# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first look
#
# A run is a folder of checkpoints of one transformer that learns facts about people who do not
# exist. This notebook opens the run that ships with the repository, patches its last checkpoint,
# and asks several checkpoints which heads and MLPs recall a fact. It takes under half a minute.

# %%
import interp

suite = interp.load_suite("../../checkpoints/demo")  # reads no weights
suite

# %% [markdown]
# A **fact** is a sentence about a person up to just before the value. Its *corrupted* prompt is the
# same sentence about another person: what differs between the two runs is what the model knows.

# %%
facts = suite.facts(48, seed=0)
facts

# %%
# What was learnt, and when: share of values with every token right, in whole biographies.
metrics = suite.metrics[suite.metrics.attribute == "average"]
metrics.pivot(index="step", columns="split", values="accuracy").loc[[0, 700, 2000, 4000, 6500]]

# %%
# What a patch sweep costs, before it runs: 4 layers × 4 heads × 6 roles of tokens.
interp.plan(suite.shape, facts, sites=["z", "mlp_out"])

# %%
# Denoising: one activation of the clean run is put into the corrupted run. 1 means that it brings
# back all of the right answer, 0 nothing.
model = suite.load(suite.steps[-1])
mlps = interp.patch(model, facts, site="mlp_out")
interp.figures.patch_heatmap(mlps)

# %%
# The same at several checkpoints, with a progress bar. The result is an xarray tree.
tree = interp.patch_suite(suite, facts, sites=["mlp_out"], steps=[0, 700, 2000, 6500])
shares = interp.interval(tree["mlp_out"])  # with 95 % intervals over facts
shares.sel(role="final", step=6500).to_dataframe()[["estimate", "low", "high"]].round(2)

# %%
# Which components implement which mechanism, and since when. Finished checkpoints are kept in
# ``out``: after an interrupt run the cell again, and it goes on. With all checkpoints and more
# facts, interp.localize(suite), it takes some minutes.
found = interp.localize(
    suite,
    suite.facts(96, seed=0),
    steps=[700, 4000, 6500],
    out=suite.path / "results" / "first-look",
    people=suite.facts(96, seed=0),
)
found

# %%
# The same as a pandas table.
found.to_dataframe().round(3)
