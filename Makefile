# `make help` lists what there is to make; `make demo` shows mvm at work.

PREFIX ?= /usr/local
DIR ?= guest
SEED ?=

.DEFAULT_GOAL := build
.PHONY: build install guest demo test check unit allowances fuzz guests bench soak clean help

build: ## build the static program
	@tools/static-build

install: ## install program, manual pages, completions, what containers need (PREFIX, DESTDIR)
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' tools/install

guest: ## put a kernel and a root file system into DIR
	@tools/guest '$(DIR)'

demo: ## boot a small Linux and show its console, and run a container
	@tools/demo

test: ## run all of the four below
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target check fuzz
	@$(MAKE) --no-print-directory unit guests

# The two have no part in make's own bookkeeping of jobs, which cargo would look for.
check: ## check format, lints, docs, words, dependencies, scripts
	@MAKEFLAGS= tests/check

unit: ## run unit tests, and tiny guests where /dev/kvm exists
	@tests/unit

allowances: ## look for system calls that VMs may make and no test needs; minutes under strace
	@tests/allowances

fuzz: ## run each fuzz target over its seeds and some seconds more
	@MAKEFLAGS= tools/fuzz

guests: ## boot real guests, on this host's KVM or in the KVM lab
	@tests/run

bench: ## measure mvm against QEMU's microvm machine
	@tools/need python3
	@tools/bench

soak: ## repeat kills, full disks and long use far more often than CI does, for hours (SEED)
	@SEED='$(SEED)' tests/soak

clean: ## remove build results; kernels and tools stay in ~/.cache/mvm
	cargo clean
	rm -rf fuzz/target

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-9s %s\n", $$1, $$2 }' Makefile
