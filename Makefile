# mvm: `make demo` shows it, `make test` tests all of it.

.DEFAULT_GOAL := build
.PHONY: build demo test check unit fuzz guests bench clean help

build: ## build the static program
	@tools/static-build

demo: ## boot a small Linux and show what it says
	@tools/demo

test: check unit fuzz guests ## everything: format, lints, unit tests, fuzzing, tests on /dev/kvm, boots of real guests

check: ## format, lints, documentation, dependencies, shell scripts
	@tests/check

unit: ## tests that need no real Linux guest; tiny guests run where /dev/kvm is there
	@tools/need gdb fish man-db zsh
	cargo test --locked --workspace --exclude tests

fuzz: ## each fuzz target over its seeds and for some seconds more
	@tools/fuzz

guests: ## boots of real guests, on this host's KVM or in the KVM lab
	@tests/run

bench: ## measure mvm against QEMU's microvm machine
	@tools/need python3
	@tools/bench

clean: ## remove what was built here; kernels and tools stay in ~/.cache/mvm
	cargo clean
	rm -rf fuzz/target

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile
