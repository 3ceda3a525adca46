def draw():
    raise SystemExit
