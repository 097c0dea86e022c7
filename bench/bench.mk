# The comparison with the reference plugins. ARGS goes to it: make bench ARGS=--quick

.PHONY: bench bench-packages

bench: venv dist bench-packages ## compare with the reference plugins, side by side (ARGS=--write for docs)
	$(VENV)/bin/python -m bench $(ARGS)

bench-packages: bench/apt-packages.txt
	scripts/apt-ensure scripts/run-packages.txt bench/apt-packages.txt
