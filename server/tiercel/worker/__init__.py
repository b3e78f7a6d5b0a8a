"""The step on a device: persistent rows, inputs gathered from them, the model, the sampler."""
