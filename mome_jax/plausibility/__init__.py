"""What the classes of a model look like in its training labels, and which predicted masks do not.

`measures` looks at a mask in its scan: size, density, place in the body, what lies around it.
`learn` makes a `record` of that from the training labels; it lies in the model folder. `judge`
compares predicted masks with it, each in itself and in its place among the others.
"""
