# The tasks themselves are in make.py, which runs without make.
PYTHON ?= python3

.PHONY: demo test check
demo test check:
	@$(PYTHON) make.py $@
