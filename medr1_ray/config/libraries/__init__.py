"""Settings that are passed on to vLLM and DeepSpeed under their own names: what these know, and what is refused."""
