// Requests made of golden data: its samples over and over, in batches of any size.
#pragma once

#include <vector>

#include "golden.h"
#include "session.h"
#include "tolerance.h"

namespace jumpout::replay {

struct Request {
  int64_t samples = 0;
  std::vector<Tensor> inputs;
  std::vector<Tensor> golden;      // what must come out
  std::vector<Allowance> allowed;  // how far from it, by output
  std::vector<Tensor> alone;       // what comes out when nothing else runs
};

// One request for each golden set and batch size. A session with a fixed batch size takes no other: that is the only
// one then. Throws UsageError if golden data holds no samples, CheckFailed if an answer has no such shape.
std::vector<Request> make_requests(const Session& session, const std::vector<GoldenSet>& sets,
                                   const std::vector<Tolerance>& tolerances, const std::vector<int>& batches);

}  // namespace jumpout::replay
