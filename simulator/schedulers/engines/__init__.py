"""The schedulers of serving engines, emulated: SGLang, vLLM and TensorRT-LLM."""
