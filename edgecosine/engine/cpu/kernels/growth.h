// One step of drafting for many requests: choose the most probable nodes of each growth, read them
// in one pass, and add their best continuations. What growth.py says, without Python between passes.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "decoder.h"
#include "rank.h"

namespace {

constexpr int kCapacity = 2048;                // as in growth.py
constexpr int32_t kRoot = -1, kUnread = -1, kNoNode = -1;
constexpr int kGuesses = 4;                    // as in drafter.py

struct Nodes {
  int32_t length, count, num_read, first_of_root;
  int32_t token[kCapacity], parent[kCapacity], depth[kCapacity], cell[kCapacity], first[kCapacity];
  double confidence[kCapacity], reach[kCapacity], share[kCapacity], share_of_root;
};

struct Growing {
  Nodes* nodes;
  const int32_t* laid;                         // to be read first
  uint64_t noise_seed;                         // mixed, as by noise.py
  int64_t num_laid, slot, width, room, deepest;
  int64_t num_chosen;                          // out: nodes that this step has read
  float inverse_temperature;
  int32_t is_noisy;
};

inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline uint64_t noise_key(uint64_t seed, int64_t position) {
  return mixed(seed + static_cast<uint64_t>(position) * 0x9E3779B97F4A7C15u);
}

// The nodes to read in this step, the most probable first, and of equals the first.
void choose(const Growing& work, std::vector<int32_t>& chosen) {
  const Nodes& n = *work.nodes;
  chosen.clear();
  if (work.num_laid) {
    chosen.assign(work.laid, work.laid + work.num_laid);
  } else {
    for (int32_t node = 0; node < n.count; node++) {
      const int32_t above = n.parent[node];
      if (n.cell[node] == kUnread && (above == kRoot || n.cell[above] != kUnread))
        chosen.push_back(node);
    }
    const auto count = std::min<size_t>(chosen.size(), work.width);
    std::partial_sort(chosen.begin(), chosen.begin() + count, chosen.end(), [&](auto a, auto b) {
      return n.reach[a] > n.reach[b] || (n.reach[a] == n.reach[b] && a < b);
    });
    chosen.resize(count);
  }
  const auto is_too_deep = [&](int32_t node) { return n.depth[node] >= work.deepest; };
  chosen.erase(std::remove_if(chosen.begin(), chosen.end(), is_too_deep), chosen.end());
  const int64_t left = std::min<int64_t>(work.room - n.num_read, (kCapacity - n.count) / kGuesses);
  chosen.resize(std::min<int64_t>(chosen.size(), std::max<int64_t>(0, left)));
}

void add_guesses(Nodes& n, int32_t parent, const int64_t* tokens, const float* shares, int best) {
  for (int b = 0; b < best; b++) {
    bool is_known = !std::isfinite(shares[b]);  // the model gave no numbers
    for (int32_t node = parent + 1; node < n.count && !is_known; node++)
      is_known = n.parent[node] == parent && n.token[node] == tokens[b];
    if (is_known) continue;
    const int32_t node = n.count++;
    n.token[node] = static_cast<int32_t>(tokens[b]);
    n.parent[node] = parent;
    n.depth[node] = n.depth[parent] + 1;
    n.confidence[node] = shares[b];
    n.reach[node] = n.confidence[node] * (n.reach[parent] * n.share[parent]);
    n.share[node] = 1.0;
    n.cell[node] = kUnread;
    n.first[node] = kNoNode;
    if (n.first[parent] == kNoNode) n.first[parent] = node;
  }
}

// Reads nodes of all works in one pass; returns its rows, or -1 where they do not fit.
int64_t grow(const Decoder& decoder, Growing* works, int64_t count) {
  thread_local std::vector<int32_t> chosen, nodes, slot, cell, length, path, path_length;
  thread_local std::vector<int64_t> owner, tokens, positions, keep;
  thread_local std::vector<float> logits;
  for (auto* column : {&nodes, &slot, &cell, &length, &path_length}) column->clear();
  for (auto* column : {&owner, &tokens, &positions, &keep}) column->clear();
  int64_t deepest = 1;
  for (int64_t w = 0; w < count; w++) {
    Growing& work = works[w];
    Nodes& n = *work.nodes;
    choose(work, chosen);
    work.num_chosen = chosen.size();
    for (const int32_t node : chosen) {
      n.cell[node] = n.length + n.num_read++;
      keep.push_back(owner.size());
      owner.push_back(w);
      nodes.push_back(node);
      tokens.push_back(n.token[node]);
      positions.push_back(n.length + n.depth[node] - 1);
      slot.push_back(work.slot);
      cell.push_back(n.cell[node]);
      length.push_back(n.length);
      path_length.push_back(n.depth[node]);
      deepest = std::max<int64_t>(deepest, n.depth[node]);
    }
  }
  const int64_t rows = owner.size();
  if (!rows) return 0;
  path.assign(rows * deepest, 0);
  for (int64_t r = 0; r < rows; r++) {
    const Nodes& n = *works[owner[r]].nodes;
    int32_t at = nodes[r];
    for (int32_t i = path_length[r] - 1; i >= 0; i--, at = n.parent[at])
      path[r * deepest + i] = n.cell[at];
  }
  const int64_t outputs = decoder.head.outputs;
  logits.resize(rows * outputs);
  if (!decode(decoder, tokens.data(), positions.data(), slot.data(), cell.data(), length.data(),
              path.data(), path_length.data(), deepest, rows, keep.data(), rows, logits.data()))
    return -1;
  const int best = static_cast<int>(std::min<int64_t>(kGuesses, outputs));
  for (int64_t r = 0; r < rows; r++) {
    const Growing& work = works[owner[r]];
    int64_t guessed[kGuesses];
    float shares[kGuesses];
    rank(&logits[r * outputs], outputs, decoder.shortlist, work.inverse_temperature, work.is_noisy,
         noise_key(work.noise_seed, positions[r] + 1), best, guessed, shares);
    add_guesses(*work.nodes, nodes[r], guessed, shares, best);
  }
  return rows;
}

}  // namespace
