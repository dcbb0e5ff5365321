// Which instruction set the kernels use: the best that the processor has, or less if asked.
#pragma once

namespace ptrain {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

// The set in use. At first the best that the processor, the compiler and PTRAIN_ISA (baseline, avx2 or
// avx512; read once) allow.
Isa isa();

// Use this set from now on, or the best below it that the processor has; returns what is used. For
// tests, while no kernel runs.
Isa use_isa(Isa wanted);

const char* name_of(Isa isa);

}  // namespace ptrain
