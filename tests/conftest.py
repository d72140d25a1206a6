import signal

collect_ignore = ["train/distributed.py"]  # a script for torchrun

# A shell starts background jobs with interrupts ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
