"""The parts of tools/kvm-lab."""
