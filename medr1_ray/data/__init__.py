"""Datasets: readers, images, phantoms and the prompt stream. Nothing here imports ray, vllm or deepspeed."""
