"""The reconstruction job: a k-space file in, images out."""
