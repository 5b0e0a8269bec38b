"""From CT files to training batches: the class template, volumes, labels, resampling."""
