// SPDX-License-Identifier: BSD-3-Clause
#include "tools/xen_clone_domain.hpp"

#include <spawn.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <span>
#include <sstream>
#include <vector>

#include <fmt/format.h>
#include <sys/wait.h>

#include "fabric/base/unique_fd.hpp"
#include "xen-glue/shell.hpp"

namespace snowfabric::xen {
namespace {

/// @return EIO: it said why on stderr; errno of the call that could not start it
Result<void> run_xl(std::vector<std::string> args) {
  args.insert(args.begin(), "xl");
  std::string all;
  std::vector<char*> argv;
  for (std::string& arg : args) {
    argv.push_back(arg.data());
    all += (all.empty() ? "" : " ") + arg;
  }
  argv.push_back(nullptr);
  pid_t pid = 0;
  if (const int errnum = posix_spawnp(&pid, "xl", nullptr, nullptr, argv.data(), environ))
    return fail(errnum, all);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) return fail(errno, all);
  if (status != 0) return fail(EIO, all);
  return {};
}

/// A file that is there while xl reads it.
class TemporaryFile {
 public:
  TemporaryFile() : path_{"/tmp/sf-xen-clone-XXXXXX"}, fd_{mkstemp(path_.data())} {}
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (fd_) unlink(path_.c_str());
  }
  [[nodiscard]] Result<void> write(std::span<const std::byte> bytes) const {
    if (!fd_ ||
        ::write(fd_.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()))
      return fail(errno, "write " + path_);
    return {};
  }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
  UniqueFd fd_;
};

/// The lines the user adds.
Result<std::string> read_lines(const std::string& path) {
  if (path.empty()) return std::string{};
  std::ifstream file{path};
  std::stringstream text;
  text << file.rdbuf();
  if (!file) return fail(errno, "read " + path);
  return text.str();
}

}  // namespace

std::string name_error(const std::string& name) {
  constexpr const char* kDigits = "0123456789";
  const std::string letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._-";
  if (name.empty() || name.find_first_not_of(letters + kDigits) != name.npos)
    return "a name has letters, digits, dots, underscores and dashes";
  if (name.find_first_not_of(kDigits) == name.npos) return "a name of digits is a domain's number";
  return {};
}

Clone::~Clone() {
  if (!created_) return;
  if (const auto ok = run_xl({"destroy", name_}); !ok)
    fmt::print(stderr, "sf-xen-clone: {} failed\n", ok.error().what);
}

Result<Domain> Clone::create(const std::string& extra_config, std::uint64_t nb_pages,
                             const DomainState& parent) {
  const auto extra = read_lines(extra_config);
  if (!extra) return std::unexpected(extra.error());
  const TemporaryFile kernel, config;
  if (auto ok = kernel.write(shell_kernel()); !ok) return std::unexpected(ok.error());
  const std::string text = shell_config(name_, kernel.path(), nb_pages, parent) + *extra + "\n";
  if (auto ok = config.write(std::as_bytes(std::span{text})); !ok)
    return std::unexpected(ok.error());
  if (auto ok = run_xl({"-t", "create", "-p", "-e", config.path()}); !ok)
    return std::unexpected(ok.error());
  created_ = true;
  return find_domain(calls_, name_);
}

}  // namespace snowfabric::xen
