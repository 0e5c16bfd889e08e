// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "coordinator/experts/experts.h"

namespace conclave::experts {

// What an implementation of Experts keeps between Start and Finish: one piece
// of work per micro-batch at the most.
template <typename Work>
class OpenWork {
 public:
  // Forgets everything; a step of so many micro-batches follows.
  void BeginStep(int32_t micro_batches) {
    places_.clear();
    places_.resize(static_cast<size_t>(micro_batches));
  }

  // FailedPrecondition: the micro-batch has work already, or does not exist.
  absl::Status CheckFree(int32_t micro_batch) const {
    if (micro_batch < 0 || static_cast<size_t>(micro_batch) >= places_.size()) {
      return absl::FailedPreconditionError(
          absl::StrCat("experts: Start was called for micro-batch ",
                       micro_batch,
                       " of a step of ",
                       places_.size(),
                       "; BeginStep says how many there are"));
    }
    if (!places_[static_cast<size_t>(micro_batch)].has_value()) {
      return absl::OkStatus();
    }
    return absl::FailedPreconditionError(
        absl::StrCat("experts: Start was called before Finish of the work "
                     "before, micro-batch ",
                     micro_batch));
  }

  // The place must be free.
  Ticket Add(int32_t micro_batch, Work work) {
    places_[static_cast<size_t>(micro_batch)].emplace(
        Place{++last_, std::move(work)});
    return Ticket{last_};
  }

  // Null: the ticket is not open.
  Work* Find(Ticket ticket) {
    for (std::optional<Place>& place : places_) {
      if (place.has_value() && place->ticket == ticket.id) return &place->work;
    }
    return nullptr;
  }
  static absl::Status NotOpen() {
    return absl::FailedPreconditionError(
        "experts: Finish was called with a ticket that is not open");
  }

  void Close(const Work* work) {
    for (std::optional<Place>& place : places_) {
      if (place.has_value() && &place->work == work) place.reset();
    }
  }
  void CloseAll() { BeginStep(static_cast<int32_t>(places_.size())); }

  // What is open beside `work`.
  std::vector<Work*> Others(const Work* work) {
    std::vector<Work*> out;
    for (std::optional<Place>& place : places_) {
      if (place.has_value() && &place->work != work) {
        out.push_back(&place->work);
      }
    }
    return out;
  }

 private:
  struct Place {
    uint64_t ticket = 0;
    Work work;
  };
  uint64_t last_ = 0;
  // By micro-batch.
  std::vector<std::optional<Place>> places_ =
      std::vector<std::optional<Place>>(1);
};

}  // namespace conclave::experts
