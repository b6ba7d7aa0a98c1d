"""What the service is compared with. Each is started as `python FILE.py MODELS PORT` and serves the encoder
of `reference@1`; those of other people's servers run in an environment of their own, see benchmarks.serving.
"""
