"""Other servers of the encoder of `reference@1`, each started as `python FILE.py MODELS PORT`.

Third-party servers run in environments of their own; see benchmarks/contenders.py.
"""
