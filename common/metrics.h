// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
}  // namespace prometheus

namespace conclave {

// Counters, gauges and histograms in Prometheus' model. A handle lives as long
// as its Metrics and is cheap to update from any thread.
class Counter {
 public:
  void Add(double amount = 1);

 private:
  friend class Metrics;
  explicit Counter(prometheus::Counter* impl) : impl_(impl) {}
  prometheus::Counter* impl_;
};

class Gauge {
 public:
  void Set(double value);

 private:
  friend class Metrics;
  explicit Gauge(prometheus::Gauge* impl) : impl_(impl) {}
  prometheus::Gauge* impl_;
};

class Histogram {
 public:
  void Observe(double value);

 private:
  friend class Metrics;
  explicit Histogram(prometheus::Histogram* impl) : impl_(impl) {}
  prometheus::Histogram* impl_;
};

class Metrics {
 public:
  using Labels = std::map<std::string, std::string>;
  Metrics();
  ~Metrics();
  // Names start with "conclave_" and carry the unit. Asking again for the same
  // name and labels returns a handle of the same series. Thread-safe.
  Counter AddCounter(const std::string& name,
                     const std::string& help,
                     const Labels& labels = {});
  Gauge AddGauge(const std::string& name,
                 const std::string& help,
                 const Labels& labels = {});
  Histogram AddHistogram(const std::string& name,
                         const std::string& help,
                         const std::vector<double>& bounds,
                         const Labels& labels = {});
  // The text exposition format.
  std::string Render() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave
