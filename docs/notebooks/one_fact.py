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
# # One fact, from template to weights, over training
#
# What is one person's major, and where in the model is it? The notebook follows a single fact: the
# sentence it is asked in, the tokens of the prompt, the activations that carry it, the heads, MLPs
# and neurons that write the answer, and the same at every checkpoint.
#
# One fact has no intervals. What holds for facts in general is tested on many
# (`interp.localize`); here it is looked at from close by.

# %%
import pandas as pd
import plotly.express as px
import torch

import interp
from interp.localization import direct_attribution, final_directions, top_neurons, written
from interp.model.weights import Weights

suite = interp.load_suite("../../checkpoints/demo")
last = suite.steps[-1]
model = suite.load(last)
facts = suite.facts(48, attribute="major", seed=0)
known = direct_attribution(model, facts).logit_diff.values  # right value − the other, nats
at = int(known.argsort()[len(known) // 2])  # an average fact: the one with the median
one = facts[[at]]  # a set of one fact
fact = facts[at]
fact

# %% [markdown]
# ## The template
#
# Each attribute has 25 sentence templates. For every person five of them are left out of training;
# facts are asked in those. So the sentence is new to the model, and the fact is not.

# %%
person = suite.population.iloc[fact.text["person"]]
name = " ".join(person[["first", "middle", "last"]])
template = fact.text["clean_prompt"].replace(name, "{name}") + " {value}"
template

# %% [markdown]
# ## Tokens and roles
#
# Clean and corrupted prompt are aligned token by token and differ in the name only. Results are
# given by role, so that sentences of different lengths can be compared.

# %%
token = suite.tokenizer.id_to_token
tokens = pd.DataFrame(
    {
        "role": fact.roles,
        "clean": [token(int(i)) for i in fact.clean],
        "corrupted": [token(int(i)) for i in fact.corrupted],
    }
)
tokens

# %% [markdown]
# ## What the model says, over training
#
# The probability of the first token of the right value, and of the other person's value.

# %%
said = []
for step in suite.steps:
    with torch.inference_mode():
        p = suite.load(step)(one.clean)[0, -1].softmax(-1)
    values = {"right": fact.answer[0], "the other person's": fact.corrupted_answer[0]}
    said.append({"step": step} | {of: float(p[i]) for of, i in values.items()})
said = pd.DataFrame(said).set_index("step")
px.line(said, markers=True, labels={"value": "probability", "variable": "value"})

# %% [markdown]
# ## Where the answer is: patching the residual stream
#
# The clean run's residual stream replaces that of the corrupted run, at one layer and position at a
# time. 1: the right answer is as strong as in the clean run; 0: as in the corrupted run.

# %%
residual = interp.patch(model, one, site="resid_pre", by="pos")
stream = interp.recovered(residual)
tokens_at = [f"{i} {x}" for i, x in enumerate(tokens.clean)]
px.imshow(
    stream.values,
    x=tokens_at,
    y=[f"layer {i}" for i in stream.layer.values],
    color_continuous_scale="RdBu",
    color_continuous_midpoint=0,
    labels={"color": "share recovered"},
)

# %% [markdown]
# ## Which heads and MLPs carry it
#
# Noising: in the clean run, one head's or MLP's output at the tokens of one role is replaced by
# what it is with the other name. Effects are in nats of the logit difference between the two
# values; negative means that the component is needed. Beside this fact: the mean over 48 facts.

# %%
tree = interp.patch_suite(suite, facts, sites=["z", "mlp_out"], steps=[last], direction="noising")
effects = {}
for site, axes in (("z", ["layer", "head"]), ("mlp_out", ["layer"])):
    effect = interp.effect(tree[site]).sel(step=last)
    cells = effect.stack(cell=[*axes, "role"]).transpose("cell", "fact")
    for place, of_facts in zip(cells.cell.values, cells.values):
        label = f"L{place[0]}H{place[1]}" if site == "z" else f"L{place[0]} MLP"
        effects[f"{label} at {place[-1]}"] = {
            "this fact": of_facts[at],
            "mean of 48": of_facts.mean(),
        }
effects = pd.DataFrame(effects).T
effects.sort_values("this fact").head(10).round(2)

# %% [markdown]
# ## What each part writes towards the answer
#
# The logit difference is a sum of what embedding, heads and MLPs write into the last residual
# stream (direct logit attribution, the final LayerNorm's scale held). A head may write nothing
# directly and still be needed, because an MLP reads it.

# %%
parts = direct_attribution(model, one).isel(fact=0)
direct = {"embedding": float(parts.embed), "constant": float(parts.constant)}
direct |= {f"L{i} MLP": float(x) for i, x in enumerate(parts.mlp)}
direct |= {f"L{i} heads": float(x.sum()) for i, x in enumerate(parts["head"])}
direct["attention biases"] = float(parts.attn_bias.sum())
direct = pd.Series(direct, name="nats")
px.bar(direct.sort_values(), orientation="h", labels={"index": "", "value": "nats"})

# %% [markdown]
# ## The neurons of the memory
#
# What each neuron of the MLP that writes most adds to the logit difference, in nats; the ten
# largest. An effect of a neuron is its activation times its output weights.

# %%
memory = int(direct.filter(like="MLP").argmax())  # the layer whose MLP writes most
neurons = written(model, facts, layer=memory)
strongest = top_neurons(neurons, k=10).isel(fact=at).to_dataframe()[["neuron", "effect"]]
strongest

# %% [markdown]
# ## Weights
#
# A neuron adds its output weights, times its activation, to the residual stream; the unembedding
# reads tokens off it. So the weights alone say how much a neuron raises each token, whatever the
# prompt: here the right value, the other person's, and the three tokens that it raises most. One
# neuron serves several values; together they single out one.

# %%
read = final_directions(model, one)
raised = Weights(model).neuron_outputs(memory) @ read.unembed.mT  # (neuron, token)
raised = raised[strongest.neuron.tolist()]
strongest["right"] = raised[:, fact.answer[0]].numpy()
strongest["other"] = raised[:, fact.corrupted_answer[0]].numpy()
strongest["raises most"] = [", ".join(map(token, of.tolist())) for of in raised.topk(3).indices]
strongest.round(2)

# %% [markdown]
# ## Over training
#
# What the memory MLP, and all heads together, write towards the answer at every checkpoint; and how
# much the strongest neuron's output weights already point where they point in the end (cosine).

# %%
neuron = int(strongest.neuron.iloc[0])
final_weights = Weights(model).neuron_outputs(memory)[neuron]
history = []
for step in suite.steps:
    then = suite.load(step)
    written_then = direct_attribution(then, one).isel(fact=0)
    weights_then = Weights(then).neuron_outputs(memory)[neuron]
    history.append(
        {
            "step": step,
            "logit difference": float(written_then.logit_diff),
            f"L{memory} MLP": float(written_then.mlp[memory]),
            "all heads": float(written_then["head"].sum()),
            "cosine": float(torch.cosine_similarity(weights_then, final_weights, dim=0)),
        }
    )
history = pd.DataFrame(history).set_index("step")
px.line(history.drop(columns="cosine"), markers=True, labels={"value": "nats", "variable": ""})

# %%
history.loc[[0, 700, 2000, 4000, last]].round(2)
