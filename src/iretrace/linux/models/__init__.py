"""Models: what kernel primitives and the frontier of KVM do, in Python, by the names that rules give them.

A model gets the run (`run.KvmRun`), with site = true also where it was called, and the C arguments as ints. Shared
cells are announced with run.shared() before each access, like the C accesses that the lowering emits.
"""
