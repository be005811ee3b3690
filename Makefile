# Everything runs in .venv, made on first use.  `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

MATRIX := lift/scripted_unet can/scripted_unet can/scripted_unet_repulsion square/scripted_unet square/scripted_unet_repulsion block_push/scripted_unet conveyor/bundled_unet

.PHONY: help install train demo test bench bench-gpu evidence matrix toys clean

help:
	@echo "make train     train a one-step policy on Push-T, evaluate it and film it"
	@echo "make demo      evaluate and film the bundled policy"
	@echo "make test      lint, type-check and test"
	@echo "make bench     measure the performance figures again (results/benchmarks)"
	@echo "make bench-gpu measure on a GPU what can be (the same folder)"
	@echo "make evidence  train and measure drift and its controls on the human demonstrations again (hours)"
	@echo "make matrix    make the demonstrations of robomimic's tasks and BlockPush, train and measure on them (a day)"
	@echo "make toys      train and draw the toys again (docs/toys.md; hours)"
	@echo "make clean     remove the environment and caches (runs/ stays)"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,plot]'
	@touch $(INSTALLED)

train: $(INSTALLED)
	$(RUN) -m drifting_policy.train task=push_t

demo: $(INSTALLED)
	$(RUN) -m drifting_policy.eval ckpt=bundled

test: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --dist loadfile

bench: $(INSTALLED)
	$(RUN) benchmarks/drift_core.py
	$(RUN) benchmarks/act.py
	$(RUN) benchmarks/compare.py
	$(RUN) benchmarks/rollout.py
	$(RUN) benchmarks/data.py
	OMP_WAIT_POLICY=PASSIVE $(RUN) benchmarks/latency.py --compile
	$(RUN) benchmarks/control_loop.py --seconds 60 --out results/benchmarks/control_loop_normal.json
	$(RUN) benchmarks/control_loop.py --priority 50
	$(RUN) benchmarks/without_torch.py
	$(RUN) benchmarks/onnx_parity.py
	$(RUN) benchmarks/feature_drift.py
	$(RUN) benchmarks/image_step.py --tasks ablation --out results/benchmarks/image_step_cpu.json
	$(RUN) benchmarks/openpi_client.py
	$(RUN) -m drifting_policy.report tables
	$(RUN) -m drifting_policy.report tables --document docs/evaluation.md
	$(RUN) -m drifting_policy.report tables --document docs/latency.md
	$(RUN) -m drifting_policy.report tables --document docs/on-the-robot.md

bench-gpu: $(INSTALLED)
	$(RUN) -m pytest tests/test_gpu.py
	$(RUN) benchmarks/latency.py --device cuda --threads 8 --repetitions 600 --out results/benchmarks/latency_gpu.json
	$(RUN) benchmarks/feature_drift.py --labels 16 --out results/benchmarks/feature_drift_gpu.json
	$(RUN) benchmarks/image_step.py
	$(RUN) -m drifting_policy.report tables --document docs/latency.md
	$(RUN) -m drifting_policy.report tables --document docs/image-generator.md

evidence: $(INSTALLED)
	$(RUN) benchmarks/baselines.py push_t/human_mlp
	$(RUN) benchmarks/baselines.py push_t/human_mlp_options
	$(RUN) benchmarks/baselines.py push_t/human_mlp_repulsion
	$(RUN) benchmarks/baselines.py push_t/human_unet
	$(RUN) benchmarks/baselines.py push_t/human_unet_repulsion
	$(RUN) benchmarks/baselines.py kitchen/human_unet
	$(RUN) benchmarks/baselines.py kitchen/human_unet_repulsion
	$(RUN) benchmarks/baselines.py push_t_image/human_small
	$(RUN) benchmarks/delays.py --picture docs/delays.png
	$(RUN) benchmarks/commit.py
	$(RUN) benchmarks/matrix.py
	$(RUN) benchmarks/images.py digits
	$(RUN) benchmarks/images.py cifar10
	$(RUN) -m drifting_policy.report tables
	$(RUN) -m drifting_policy.report tables --document docs/training.md
	$(RUN) -m drifting_policy.report tables --document docs/image-generator.md
	$(RUN) -m drifting_policy.report tables --document docs/evaluation.md
	$(RUN) -m drifting_policy.report tables --document docs/tasks.md

matrix: $(INSTALLED)
	$(RUN) -m drifting_policy.datasets.experts --task lift --episodes 200 --workers 2 --out data/robomimic/lift_scripted.hdf5
	$(RUN) -m drifting_policy.datasets.experts --task can --episodes 200 --workers 2 --out data/robomimic/can_scripted.hdf5
	$(RUN) -m drifting_policy.datasets.experts --task square --episodes 300 --workers 2 --out data/robomimic/square_scripted.hdf5
	$(RUN) -m drifting_policy.datasets.block_push --out data/block_push/block_push_scripted.zarr.zip
	for table in $(MATRIX); do DRIFTING_POLICY_DATA=data $(RUN) benchmarks/baselines.py $$table || exit 1; done
	DRIFTING_POLICY_DATA=data $(RUN) benchmarks/replays.py
	$(RUN) benchmarks/matrix.py
	$(RUN) -m drifting_policy.report tables
	$(RUN) -m drifting_policy.report tables --document docs/tasks.md
	$(RUN) -m drifting_policy.report tables --document docs/training.md

toys: $(INSTALLED)
	$(RUN) benchmarks/mixtures.py
	$(RUN) benchmarks/obstacle.py
	$(RUN) benchmarks/obstacle.py --study
	$(RUN) benchmarks/obstacle.py --study --seeds 4 --arms drift "drift, repulsion 0.9" "drift, repulsion 0.75" "drift, repulsion 0.5" \
		"drift, repulsion 0.0" --out results/toy/obstacle_repulsion.json
	$(RUN) benchmarks/obstacle_picture.py
	$(RUN) -m drifting_policy.report tables --document docs/toys.md

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
