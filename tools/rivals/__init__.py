"""What an engineer would use instead of effnet on a CPU, measured beside it; `compare_pytorch.py` runs it.

`reference.py` makes one network: timm's, with weights, images and the logits that PyTorch computes in fp32, and the
same network as an ONNX file. `engines.py` runs it in each program as that program's documentation recommends,
`worker.py` in a process of its own, so that threads and memory of one do not disturb another. `processes.py` starts
these processes and asks them, `rounds.py` lets all take turns, `tables.py` prints the medians.

Only processes started here load PyTorch: the program that starts them stays small, because Linux counts the memory of
the parent as the peak of a child that has just begun.
"""
