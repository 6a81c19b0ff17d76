"""The world round a hypervisor: guest, processor, other CPUs, host and VMM, and the patient reference beside them."""
