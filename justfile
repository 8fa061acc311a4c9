# Commands of this project. `just` lists them; `.ci/run` runs them after `just` is in .venv.

_list:
    @just --list

# Make .venv with everything that the tests need (1.8 GB)
setup:
    python3 -m venv .venv
    .venv/bin/pip install -q --no-deps -r constraints-test.txt
    @just link

# In strict mode an editable installation is a tree of links, which a type checker can follow.
# Install this folder as links; repeat it after a module is added, moved or removed
link:
    .venv/bin/pip install -q --no-deps --no-build-isolation -e . --config-settings editable_mode=strict

# Run the tests that need nothing but Python
test *options:
    .venv/bin/pytest -n auto --dist worksteal -m "not heavy" {{ options }}

# Run the tests that need PostgreSQL, Redis, Chromium or minutes, and the property tests at length
test-heavy *options:
    .venv/bin/pytest -n auto --dist loadfile --no-loadscope-reorder -m "heavy or hypothesis" --hypothesis-profile=thorough {{ options }}

# Run all tests
test-all: test test-heavy

# Check the coverage of the tests that ran with --cov: all branches of runway, 90 % of the others
coverage:
    .venv/bin/coverage report --include='runway/*' --fail-under=100
    for package in blocks flows deployments sandbox; do .venv/bin/coverage report --include="$package/*" --fail-under=90 || exit 1; done

# Install the newest of everything, as a user gets it, for each Python found here; run demo and core
newest:
    .venv/bin/python -m tests.newest

# Check style and formatting
lint:
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .

# Fix what ruff can fix
format:
    .venv/bin/ruff check --fix .
    .venv/bin/ruff format .

# Check the types
types: link
    .venv/bin/pyright --pythonpath .venv/bin/python

# Check that the pages are true: commands, links, settings, examples
docs:
    .venv/bin/pytest tests/test_docs.py tests/test_readme.py tests/test_reference.py tests/test_release.py

# Build the site of docs/ in build/site
site:
    .venv/bin/python docs/site.py

# Measure the import time and what the ledger costs
bench:
    .venv/bin/python benchmarks/import_time.py 5
    .venv/bin/python benchmarks/ledger_cost.py 10

# Run the long tests of failures: kills, a storm of faults, a soak and a random walk (two hours)
chaos:
    .venv/bin/python tests/chaos/kill_matrix/matrix.py --sqlite 100 --postgresql 50
    .venv/bin/python tests/chaos/fault_storm/storm.py --generations 300 --seed 1 2
    .venv/bin/python tests/chaos/reconcile/reconcile.py --generations 300 --kills 3 --seed 1
    .venv/bin/python tests/chaos/soak/soak.py --minutes 20
    .venv/bin/python -m tests.chaos.random_walk --minutes 60 --database sqlite
