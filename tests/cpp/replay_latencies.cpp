// Reads durations and prints percentiles of them: replay-latencies SHARE... < NUMBERS
#include <iostream>
#include <string>

#include "latencies.h"

int main(int argc, char** argv) {
  jumpout::replay::Latencies one, all;
  int64_t count = 0;
  for (double value = 0; std::cin >> value; ++count) (count % 2 ? one : all).add(value);
  all.add(one);
  if (all.count() != count) return 1;
  for (int i = 1; i < argc; ++i) std::cout << all.percentile(std::stod(argv[i])) << "\n";
}
