"""Our KVM, in Python: laid out and named like arch/x86/kvm, to be read beside the C. Start with x86_run.py."""
