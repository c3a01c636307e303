"""What kernels in CUDA C++ share: compiling and loading them, and what they need of Hopper beyond plain C++."""
