"""The files of a bundle, made from a trained model and held against it: those of each form, and all of them."""
