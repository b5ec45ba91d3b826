"""The parts of the state machine in tests/storage/test_machine.py: what it knows, and a file for each kind of verb."""
