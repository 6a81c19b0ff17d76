"""Iretrace: is a hypervisor's event virtualization indistinguishable from the processor it imitates?"""

__version__ = "0.1.0"
