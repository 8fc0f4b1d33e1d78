"""Our part of vLLM's engine process: transfer engines that load only what has been proven. Imports vLLM.

The only place where vLLM's weight-transfer API (0.32) and its layerwise reload are used. vLLM imports
`extension.WorkerExtension` by its path in every worker; that import registers the transfer engines.
"""
