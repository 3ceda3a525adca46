#!/usr/bin/env bash
# The whole recipe: sh recipes/small/run.sh WORK, a new directory. Needs the extras train, eval, plot.
set -euo pipefail
recipe=$(cd "$(dirname "$0")" && pwd)
python "$recipe/make.py" "$1"
cd "$1"

jina-jax train "$recipe/base.toml"
jina-jax export runs/base base --to native

jina-jax train "$recipe/text_matching.toml"
jina-jax export runs/text-matching text-matching --to transformers

jina-jax mine base queries.jsonl triplets.jsonl --num-negatives 3 --range-max 50 --relative-margin 0.05
jina-jax train "$recipe/retrieval.toml"
jina-jax export runs/retrieval retrieval --to transformers

# Before and after, as a user would ask.
for model in base text-matching; do
  jina-jax eval $model sts eval/stsb-*-dev.csv --columns 0,1,2 --task text-matching
done
for model in base retrieval; do
  jina-jax eval $model retrieval search --dims 32,64,128
done
