#!/usr/bin/env bash
# The whole recipe, from package names to the files in jina_jax/tiny:
#
#     bash recipes/tiny/run.sh WORK
#
# WORK is a directory; a step whose result is there is not done again. Needs Debian 12 with apt, the
# public data beside the repository, the extras train, eval, plot, and
# `pip install bm25s==0.3.16 pythainlp==5.1.2 wordfreq==3.1.1`.
# A few hours on 2 cores.
set -euo pipefail
recipe=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && cd "$1"
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3

python "$recipe/fetch.py" debs files
# Of a step with several results, the one that comes last stands for all.
[ -e glosses.jsonl ] || python "$recipe/texts.py" files .
[ -e help-test.jsonl ] || python "$recipe/pairs.py" .
[ -e sample.jsonl ] || python "$recipe/rows.py" .
[ -e words.jsonl ] || python "$recipe/words.py" .
ln -sfn "${JINA_JAX_SHARED:-$recipe/../../../shared}/eval" eval

# The teacher, and what it makes of every English text and of the words.
[ -e teacher ] || python "$recipe/teacher.py" teacher
for texts in english words; do
  [ -e $texts-e5.npy ] || python "$recipe/encode.py" teacher $texts.jsonl $texts-e5.npy
done
[ -e tokenizer.json ] || python "$recipe/start.py" pieces .
[ -e bag.npy ] || python "$recipe/start.py" bag .
[ -e start ] || python "$recipe/start.py" model . start 3 192

# The base, then one adapter after the other: each run starts from the run before it.
train() { # config, run, converted run
  [ -e "$3" ] && return
  if [ -e "runs/$2" ]; then jina-jax train "$recipe/$1" --resume; else jina-jax train "$recipe/$1"; fi
  jina-jax convert "runs/$2" "$3" --to native
}
train base.toml base base
train text_matching.toml text-matching text-matching
[ -e triplets.jsonl ] || jina-jax mine retrieval.jsonl triplets.jsonl --model base \
  --num-negatives 2 --range-max 50 --relative-margin 0.05
train retrieval.toml retrieval retrieval
train classification.toml classification classification
train separation.toml separation separation

# For the figure of classification: the adapter again, five times without a fold of Banking77.
mkdir -p folds
for fold in 0 1 2 3 4; do
  sed -e "s#labelled-banking.jsonl#banking/train-$fold.jsonl#" \
    -e "s#runs/classification#runs/fold-$fold#" "$recipe/classification.toml" > "folds/$fold.toml"
  [ -e "folds/$fold" ] && continue
  jina-jax train "folds/$fold.toml"
  jina-jax convert "runs/fold-$fold" "folds/$fold" --to native
done

python "$recipe/package.py" separation "$recipe/../../jina_jax/tiny"
python "$recipe/evaluate.py" . "$recipe/../../jina_jax/tiny"
