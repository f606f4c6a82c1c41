// What a kernel throws. The bindings turn the kind into a Python exception class; the text is one line,
// `op: what is wrong`, and says both what was given and what was expected.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace pyft {

enum class ErrorKind { kValue, kIndex, kRuntime };  // ValueError, IndexError, RuntimeError

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

template <typename... Parts>
[[noreturn]] void fail(ErrorKind kind, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(kind, text.str());
}

// Throws a ValueError made of `parts` unless `condition` holds.
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) fail(ErrorKind::kValue, parts...);
}

}  // namespace pyft
