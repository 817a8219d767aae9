// Numbers for the drivers: the same for the same seed, with the odd ones more often than chance has them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <vector>

struct Random {
  uint64_t state;

  uint64_t Next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
  }
  int64_t Below(int64_t bound) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(bound)); }
  bool Chance(int64_t in) { return Below(in) == 0; }
  int64_t Size() {
    static const int64_t odd[] = {INT64_MIN, -2, -1, 0, 1, 2, 3, 4, 15, 16, 17, 63, 64, 65, 1 << 20, INT32_MAX,
                                  int64_t{INT32_MAX} + 1, INT64_MAX / 2, INT64_MAX};
    return Chance(3) ? odd[Below(std::size(odd))] : 1 + Below(80);
  }
  float Float() { return static_cast<float>(Below(2001) - 1000) / 250; }
  std::vector<float> Floats(int64_t count) {
    std::vector<float> made(static_cast<size_t>(count));
    for (float& value : made) value = Float();
    made.shrink_to_fit();
    return made;
  }
};
