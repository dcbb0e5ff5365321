// Lays many tensors end to end, so that threads and chunks take equal shares of all elements.
#pragma once

#include <cstdint>

#include "small.h"

namespace ptrain {

// Every tensor begins at a multiple of this many elements: a cut never falls inside a vector register,
// so an element is computed by the same instructions however the work is shared.
constexpr std::int64_t range_alignment = 64;

// Where each tensor begins on the common axis, and one past the end of the last. size_of(i) in elements.
template <typename SizeOf>
Array<std::int64_t> lay_end_to_end(std::int64_t count, SizeOf size_of) {
  Array<std::int64_t> starts(count + 1);
  std::int64_t end = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    starts[i] = end;
    end += (size_of(i) + range_alignment - 1) / range_alignment * range_alignment;
  }
  starts[count] = end;
  return starts;
}

// Calls span(tensor, first element, one past the last) for all tensors on [begin, end) of the axis.
// The last may lie beyond the tensor's own size, by less than range_alignment.
template <typename Span>
void for_each_span(const Array<std::int64_t>& starts, std::int64_t begin, std::int64_t end, Span span) {
  std::int64_t tensor = first_above(&starts[0], starts.size(), begin) - 1;
  while (begin < end) {
    while (starts[tensor + 1] <= begin) ++tensor;  // tensors without elements take no room
    const std::int64_t stop = smaller_of(end, starts[tensor + 1]);
    span(tensor, begin - starts[tensor], stop - starts[tensor]);
    begin = stop;
  }
}

}  // namespace ptrain
