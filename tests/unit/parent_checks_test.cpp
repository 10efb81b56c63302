// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/parent_checks.hpp"

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>

#include "tests/unit/fake_qemu.hpp"

namespace snowfabric::testing {
namespace {

using ::testing::HasSubstr;

using Check = std::function<Result<void>(Qmp&)>;

/// What the check says of a QEMU that answers so, or nothing.
std::optional<Error> refusal(const Check& check, const QemuAnswers& answers) {
  const auto ok = asked_of_qemu(answers, check);
  return ok ? std::nullopt : std::optional{ok.error()};
}

Error error_of(const Check& check, const QemuAnswers& answers) {
  return refusal(check, answers).value_or(Error{0, "no error"});
}

TEST(ParentChecks, AVmWhoseRamOnlyQemuWritesIsTaken) {
  EXPECT_FALSE(refusal(
      refuse_foreign_writers,
      {{"/machine/peripheral", R"([{"name": "type", "type": "string"},)"
                               R"( {"name": "net", "type": "child<virtio-net-pci>"}])"},
       {"/objects", R"([{"name": "pc.ram", "type": "child<memory-backend-memfd>"}])"},
       {"info network", R"("net: index=0,type=nic\r\n \\ net0: index=0,type=tap,fd=9\r\n")"}}));
}

TEST(ParentChecks, ADeviceThatAnotherProcessWorksIsNamed) {
  for (const char* place : {"/machine/peripheral", "/machine/peripheral-anon", "/objects"})
    for (const char* type : {"child<vhost-user-fs-pci>", "child<cryptodev-vhost-user>",
                             "child<vfio-pci>", "child<ivshmem-plain>"}) {
      const auto child = Qmp::Json::array({{{"name", "share0"}, {"type", type}}});
      const Error error = error_of(refuse_foreign_writers, {{place, child.dump()}});
      EXPECT_EQ(error.errnum, ENOTSUP) << place;
      EXPECT_THAT(error.what, HasSubstr("share0"));
      EXPECT_THAT(error.what, HasSubstr(type));
    }
}

TEST(ParentChecks, ANetworkCardThatAnotherProcessWorksIsRefused) {
  const Error error = error_of(
      refuse_foreign_writers,
      {{"info network", R"("nic: index=0,type=nic\r\n \\ n: index=0,type=vhost-user,x\r\n")"}});
  EXPECT_EQ(error.errnum, ENOTSUP);
  EXPECT_THAT(error.what, HasSubstr("vhost-user"));
}

TEST(ParentChecks, MemoryThatIsADiskIsRefused) {
  for (const char* type : {"nvdimm", "virtio-pmem"}) {
    const auto devices = Qmp::Json::array({{{"type", type}, {"data", Qmp::Json::object()}}});
    const Error error = error_of(refuse_writable_disks, {{"query-memory-devices", devices.dump()}});
    EXPECT_EQ(error.errnum, EROFS);
    EXPECT_THAT(error.what, HasSubstr(type));
  }
  EXPECT_FALSE(refusal(refuse_writable_disks,
                       {{"query-memory-devices", R"([{"type": "dimm", "data": {}}])"}}));
}

TEST(ParentChecks, AWritableDiskIsRefused) {
  EXPECT_FALSE(refusal(refuse_writable_disks,
                       {{"query-block", R"([{"device": "cd"}, {"inserted": {"ro": true}}])"}}));
  EXPECT_EQ(error_of(refuse_writable_disks,
                     {{"query-block", R"([{"device": "hd", "inserted": {"ro": false}}])"}})
                .errnum,
            EROFS);
}

TEST(ParentChecks, ADeviceThatGivesMemoryBackIsRefused) {
  constexpr const char* kNoBalloon = "!No balloon device has been activated";
  EXPECT_FALSE(refusal(refuse_returned_memory, {{"query-balloon", kNoBalloon}}));
  Error error = error_of(refuse_returned_memory, {{"query-balloon", R"({"actual": 4096})"}});
  EXPECT_EQ(error.errnum, ENOTSUP);
  EXPECT_THAT(error.what, HasSubstr("balloon"));
  error = error_of(refuse_returned_memory,
                   {{"query-balloon", kNoBalloon},
                    {"query-memory-devices", R"([{"type": "virtio-mem", "data": {}}])"}});
  EXPECT_EQ(error.errnum, ENOTSUP);
  EXPECT_THAT(error.what, HasSubstr("virtio-mem"));
}

TEST(ParentChecks, AQemuThatDoesNotSayWhatItHasIsRefused) {
  const std::vector<std::pair<Check, std::string>> checks{
      {refuse_returned_memory, "query-memory-devices"},
      {refuse_writable_disks, "query-block"},
      {refuse_foreign_writers, "qom-list"},
      {refuse_foreign_writers, "info network"}};
  for (const auto& [check, command] : checks)
    EXPECT_THAT(error_of(check, {{"query-balloon", "!none"}, {command, "!it is not told"}}).what,
                HasSubstr("it is not told"))
        << command;
}

/// The verdict on RAM of 4096 bytes.
int verdict_on(const std::string& backends) {
  return error_of([](Qmp& qmp) { return check_only_backend(qmp, 4096); },
                  {{"query-memdev", backends}})
      .errnum;
}

TEST(ParentChecks, AllRamIsOneSharedBackendAndTheLargestOrItDoesNotStayInPlace) {
  EXPECT_EQ(verdict_on(R"([{"id": "ram", "size": 4096, "share": true}])"), 0);
  EXPECT_EQ(verdict_on(R"([{"size": 2048, "share": false}, {"size": 4096, "share": true}])"), 0);
  for (const char* other :
       {"[]", R"([{"size": 4096, "share": false}])", R"([{"size": 8192, "share": true}])",
        R"([{"size": 2048, "share": true}, {"size": 2048, "share": true}])",
        R"([{"size": 4096, "share": true}, {"size": 512, "share": true}])",
        R"([{"size": 4096, "share": true}, {"size": 4096, "share": false}])"})
    EXPECT_EQ(verdict_on(other), ENOTSUP) << other;
}

}  // namespace
}  // namespace snowfabric::testing
