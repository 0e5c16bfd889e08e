// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/bpe.h"

#include <queue>
#include <tuple>

namespace conclave::text {
namespace {

uint64_t Key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 |
         static_cast<uint32_t>(right);
}

// A token of the piece in a doubly linked list by positions.
struct Node {
  int32_t id;
  int32_t previous;
  int32_t next;  // -1: end
};

// A merge that was possible when it was queued.
struct Candidate {
  int32_t rank;
  int32_t at;  // position of the left token
  int32_t left;
  int32_t right;
  int32_t merged;
  bool operator<(const Candidate& other) const {
    return std::tie(rank, at) > std::tie(other.rank, other.at);
  }
};

}  // namespace

void Bpe::AddMerge(int32_t left, int32_t right, int32_t merged) {
  merges_.try_emplace(Key(left, right),
                      Merge{static_cast<int32_t>(merges_.size()), merged});
}

const Bpe::Merge* Bpe::Find(int32_t left, int32_t right) const {
  const auto it = merges_.find(Key(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

void Bpe::Encode(std::string_view piece, std::vector<int32_t>& out) const {
  std::vector<Node> nodes(piece.size());
  std::priority_queue<Candidate> queue;
  const auto consider = [&](int32_t at) {
    if (at < 0 || nodes[at].next < 0) return;
    const int32_t left = nodes[at].id;
    const int32_t right = nodes[nodes[at].next].id;
    if (const Merge* merge = Find(left, right)) {
      queue.push({merge->rank, at, left, right, merge->merged});
    }
  };
  const auto size = static_cast<int32_t>(piece.size());
  for (int32_t i = 0; i < size; ++i) {
    nodes[i] = {byte_ids_[static_cast<uint8_t>(piece[i])],
                i - 1,
                i + 1 < size ? i + 1 : -1};
  }
  for (int32_t i = 0; i < size; ++i) consider(i);
  while (!queue.empty()) {
    const Candidate c = queue.top();
    queue.pop();
    Node& node = nodes[c.at];
    // Stale when one of the two has been merged since.
    if (node.id != c.left || node.next < 0 || nodes[node.next].id != c.right) {
      continue;
    }
    const int32_t gone = node.next;
    node.id = c.merged;
    node.next = nodes[gone].next;
    if (node.next >= 0) nodes[node.next].previous = c.at;
    nodes[gone].id = -1;
    consider(node.previous);
    consider(c.at);
  }
  for (int32_t i = 0; i >= 0 && i < size; i = nodes[i].next) {
    out.push_back(nodes[i].id);
  }
}

}  // namespace conclave::text
