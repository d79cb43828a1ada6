"""How good depth is: `evaluate(predictor, frames, protocol)`.

`metrics` are the figures, `protocols` says which pixels count and how depth is scaled, `frames`
reads a recording for them, `predictors` are all that can say depth, `evaluate` brings them
together.
"""
