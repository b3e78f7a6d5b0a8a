"""Routes in the shapes of hosting platforms: SageMaker, Vertex AI, KServe and Triton."""
