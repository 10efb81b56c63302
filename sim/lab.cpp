// SPDX-License-Identifier: BSD-3-Clause
#include "sim/lab.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "sim/frame_text.hpp"

namespace snowfabric::sim {
namespace {

constexpr unsigned kFramesPerTurn = 512;  // as the poll loops: 16 bursts
constexpr std::size_t kBufferPages = 256;
constexpr LinkConfig kInstant{.delay = Nanos{0}};

wire::EthHdr header_of(const Bytes& frame) {
  wire::EthHdr eth;
  std::memcpy(&eth, frame.data(), sizeof eth);
  return eth;
}

std::span<const std::byte> payload_of(const Bytes& frame) {
  return std::span{frame}.subspan(sizeof(wire::EthHdr));
}

}  // namespace

bool Memtap::settled() const {
  return std::ranges::all_of(
      guests, [](const auto& guest) { return guest->done() || guest->gone() || guest->failed(); });
}

Lab::Lab(const TestImage& image, const ServerConfig& server, std::uint64_t seed)
    : image_{image}, server_config_{server}, prng_{seed}, server_{kInstant, LinkConfig{}} {
  server_.mac = kServerMac;
  server_.name = "server";
  start_server(server.incarnation);
}

void Lab::say(const std::string& what) const {
  if (trace) trace(now_, what);
}

void Lab::say_sent(const Party& from, const Bytes& frame, unsigned nb_copies) const {
  if (!trace || !trace_frames) return;
  constexpr std::array<std::string_view, 3> kFate{", which is lost", "", ", twice"};
  const bool to_all = header_of(frame).dst.is_multicast();
  say(fmt::format("{}{}: {}{}", from.name, to_all ? " to all" : "", to_string(frame),
                  kFate[std::min<std::size_t>(nb_copies, 2)]));
}

void Lab::say_lost(const Party& to, const Bytes& frame, std::string_view how) const {
  if (trace && trace_frames) say(fmt::format("{} {}: {}", to.name, how, to_string(frame)));
}

// --- who is there ----------------------------------------------------------------------------

void Lab::start_server(std::uint32_t incarnation) {
  server_config_.incarnation = incarnation;
  server_.engine.reset();  // before what it counts into
  server_.stats = std::make_unique<ServerStats>();
  server_.engine = std::make_unique<ServerEngine>(server_config_, image_.view(), *server_.stats);
  empty_ring(server_);
  schedule(server_, now_);
  say(fmt::format("server starts, incarnation {}", incarnation));
}

void Lab::kill_server() {
  server_.engine.reset();
  empty_ring(server_);
  say("server dies");
}

Memtap& Lab::add_memtap(const LinkConfig& link, const std::function<void(ClientConfig&)>& tune,
                        bool starts) {
  auto memtap = std::make_unique<Memtap>(kInstant, link);
  const std::size_t number = memtaps_.size() + 1;
  memtap->name = fmt::format("memtap{}", number);
  memtap->mac = MacAddr{
      {0x02, 0, 0, 1, static_cast<std::uint8_t>(number >> 8U), static_cast<std::uint8_t>(number)}};
  memtap->config = {.image_id = image_.view().image_id,
                    .epoch = image_.view().epoch,
                    .mac = memtap->mac,
                    .mtu_bytes = server_config_.mtu_bytes};
  if (tune) tune(memtap->config);
  memtaps_.push_back(std::move(memtap));
  if (starts) start_memtap(*memtaps_.back());
  return *memtaps_.back();
}

void Lab::start_memtap(Memtap& memtap) {
  memtap.config.client_id = prng_.next() | 1U;
  memtap.config.seed = prng_.next();
  memtap.process = std::make_unique<Memtap::Process>(memtap.config);
  schedule(memtap, now_);
  say(fmt::format("{} starts", memtap.name));
}

/// The image is known.
void Lab::serve_guests(Memtap& memtap) {
  Memtap::Process& process = *memtap.process;
  process.host =
      std::make_unique<Host>(process.engine, process.host_stats, memtap.prefetch, kBufferPages);
  if (memtap.keeps) process.kept = std::make_unique<Kept>(image_);
  process.loop.serve(*process.host, process.kept.get());
  for (const auto& guest : memtap.guests) {
    if (guest->gone() || !guest->here()) continue;
    guest->forget_reports();
    give(memtap, *guest);
  }
}

/// @pre it serves guests
void Lab::give(Memtap& memtap, Guest& guest) {
  if (memtap.process->kept) guest.keep_in(&memtap.process->kept->pages());
  memtap.process->host->attach(guest);
}

void Lab::kill_memtap(Memtap& memtap) {
  for (const auto& guest : memtap.guests) guest->keep_in(nullptr);
  memtap.process.reset();
  empty_ring(memtap);
  say(fmt::format("{} dies", memtap.name));
}

Guest& Lab::add_guest(Memtap& memtap, std::vector<std::uint64_t> order, Guest::Pace pace,
                      bool comes) {
  auto guest = std::make_unique<Guest>(
      fmt::format("guest{} of {}", memtap.guests.size() + 1, memtap.name), image_, judge_, now_);
  guest->add_vcpu(std::move(order), pace);
  memtap.guests.push_back(std::move(guest));
  if (comes) attach_guest(memtap, *memtap.guests.back());
  return *memtap.guests.back();
}

void Lab::attach_guest(Memtap& memtap, Guest& guest) {
  if (guest.gone() || guest.here()) return;
  guest.come();
  if (memtap.process && memtap.process->host) give(memtap, guest);
  schedule(memtap, now_);
}

void Lab::kill_guest(Memtap& memtap, Guest& guest) {
  guest.die();
  if (memtap.process && memtap.process->host) memtap.process->host->detach(guest);
  say(fmt::format("{} dies", guest.name()));
}

void Lab::pause(Party& party, Nanos until) {
  party.paused_until = std::max(party.paused_until, until);
  say(fmt::format("{} stands until {} us", party.name, to_micros(until)));
}

bool Lab::settled() const {
  return std::ranges::all_of(memtaps_, [](const auto& memtap) { return memtap->settled(); });
}

// --- time ------------------------------------------------------------------------------------

void Lab::at(Nanos when, std::function<void()> what) {
  scripts_.push_back(std::move(what));
  add(std::max(when, now_), {.party = nullptr, .frame = nullptr, .script = scripts_.size() - 1});
}

bool Lab::run(Nanos limit) {
  while (!settled() && !moments_.empty() && moments_.begin()->first <= limit) step();
  return settled();
}

void Lab::run_until(Nanos when) {
  while (!moments_.empty() && moments_.begin()->first <= when) step();
  now_ = std::max(now_, when);
}

void Lab::step() {
  const auto first = moments_.begin();
  auto& [when, events] = *first;
  now_ = std::max(now_, when);
  for (std::size_t i = 0; i < events.size(); ++i)
    on_event(when, Event{std::move(events[i])});  // which may add to them
  moments_.erase(first);
}

void Lab::on_event(Nanos when, const Event& event) {
  if (event.party == nullptr) return scripts_[event.script]();
  Party& party = *event.party;
  if (event.at_switch) return switch_frame(party, event.frame);
  if (event.frame == nullptr) {
    if (when != party.turn_at) return;  // another turn was due before
    party.turn_at = Nanos::max();
    return turn(party);
  }
  --party.nb_under_way;
  if (party.rx.size() >= party.speed.rx_ring) {
    ++party.rx_ring_full;
    return say_lost(party, *event.frame, "has no room for");
  }
  party.rx_bytes += event.frame->size();
  party.rx.push_back(event.frame);
  schedule(party, now_);
}

void Lab::empty_ring(Party& party) {
  party.rx_died_with_it += party.rx.size();
  party.rx.clear();
}

FramePtr Lab::take(Party& party) {
  FramePtr frame = std::move(party.rx.front());
  party.rx.pop_front();
  ++party.rx_taken;
  return frame;
}

/// The next turn, not later than that, unless the party is busy or stands.
void Lab::schedule(Party& party, Nanos when) {
  when = std::max({when, now_, party.busy_until, party.paused_until});
  if (when >= party.turn_at) return;
  party.turn_at = when;
  add(when, {.party = &party, .frame = nullptr});
}

void Lab::turn(Party& party) {
  if (party.paused_until > now_) return schedule(party, party.paused_until);
  const Nanos next = &party == &server_ ? turn_server() : turn_memtap(static_cast<Memtap&>(party));
  if (next != Nanos::max()) schedule(party, next);
  if (after_turn) after_turn(party);
}

// --- turns -----------------------------------------------------------------------------------

Nanos Lab::turn_server() {
  ServerParty& server = server_;
  if (!server.engine) {
    empty_ring(server);
    return Nanos::max();
  }
  unsigned nb_frames = 0;
  for (; !server.rx.empty() && nb_frames < kFramesPerTurn; ++nb_frames) {
    const FramePtr frame = take(server);
    wire::Frame parsed;
    wire::Drop why = wire::parse(payload_of(*frame), parsed);
    if (why == wire::Drop::kNone)
      why = server.engine->on_frame(parsed, header_of(*frame).src, now_);
    if (why != wire::Drop::kNone) server.drops.count(why);
  }
  // The card sends on while it deals with the next frames.
  const Nanos until = now_ + nb_frames * server.speed.frame;
  ServerTx tx;
  while (server.up.free_at() <= until && server.engine->next(tx, now_)) {
    FramePtr frame = made_by_server(tx);
    wire_bytes_ += frame->size();
    send(server, std::move(frame));
  }
  server.busy_until = until + server.speed.turn;
  if (!server.rx.empty()) return server.busy_until;
  return std::max(server.engine->deadline(now_), server.up.free_at());
}

FramePtr Lab::made_by_server(const ServerTx& tx) const {
  auto frame = std::make_shared<Bytes>(wire::kMaxFrameBytes);
  const std::size_t size = server_.engine->write(tx, kServerMac, *frame);
  frame->resize(size);
  if (tx.type != wire::FrameType::kPage) return frame;
  const std::size_t nb_fragments = server_.engine->nb_fragments();
  const auto append = [&](Gfn page) {
    const std::span<const std::byte> data =
        image_.page(page).subspan(tx.fragment * wire::fragment_stride(nb_fragments),
                                  wire::fragment_bytes(tx.fragment, nb_fragments));
    frame->insert(frame->end(), data.begin(), data.end());
  };
  append(tx.range.first);
  if (tx.second) append(*tx.second);
  return frame;
}

/// @return when a vCPU that waits for nothing touches its next page
Nanos Lab::run_guests(Memtap& memtap) {
  Nanos next = Nanos::max();
  for (const auto& guest : memtap.guests) {
    guest->run(now_);
    next = std::min(next, guest->next_touch());
  }
  return next;
}

Nanos Lab::turn_memtap(Memtap& memtap) {
  const Nanos next_touch = run_guests(memtap);
  if (!memtap.process) {
    empty_ring(memtap);
    return next_touch;
  }
  Memtap::Process& process = *memtap.process;
  unsigned nb_done = 0;
  for (; !memtap.rx.empty() && nb_done < kFramesPerTurn; ++nb_done) {
    const FramePtr frame = take(memtap);
    process.loop.on_frame(header_of(*frame).src, payload_of(*frame), frame->size(), now_);
  }
  if (!process.host && process.engine.nb_pages() != 0) serve_guests(memtap);
  if (unanswered_end && !process.host && process.engine.state() == ClientState::kServerDead) {
    say(fmt::format("{} is answered by no server, and ends", memtap.name));
    kill_memtap(memtap);
    return next_touch;
  }
  memtap.busy_until = now_ + memtap.speed.turn + nb_done * memtap.speed.frame;
  run_guests(memtap);  // with what has come
  if (memtap.rx.empty()) nb_done += process.loop.ask(now_);
  if (nb_done == 0) process.loop.idle(now_);
  send_frames(memtap);
  // And with what had gathered, or was told that it cannot be had.
  const Nanos next = std::min(run_guests(memtap), process.loop.deadline(now_));
  const bool more =
      process.host &&
      (process.host->has_gathered() ||
       std::ranges::any_of(memtap.guests, [](const auto& guest) { return guest->has_faults(); }));
  return nb_done != 0 || more || !memtap.rx.empty() ? memtap.busy_until : next;
}

void Lab::send_frames(Memtap& memtap) {
  std::array<std::byte, wire::kMaxFrameBytes> buffer;
  while (const std::size_t size = memtap.process->loop.next(buffer, now_))
    send(memtap, std::make_shared<Bytes>(buffer.data(), buffer.data() + size));
}

// --- the wire --------------------------------------------------------------------------------

void Lab::inject(Party& to, Bytes frame) {
  frame.resize(std::max(frame.size(), sizeof(wire::EthHdr)));
  std::memcpy(frame.data(), &to.mac, sizeof to.mac);
  carry(to, std::make_shared<const Bytes>(std::move(frame)));
}

void Lab::send(Party& from, FramePtr frame) {
  unsigned nb_copies = 0;
  from.up.carry(*frame, now_, prng_, [&](Nanos arrives, bool corrupted) {
    ++nb_copies;
    FramePtr received = corrupted ? corrupt(*frame) : frame;
    if (received == nullptr) {
      ++from.tx_refused_by_switch;
      return;
    }
    ++from.nb_to_switch;
    add(arrives, {.party = &from, .frame = std::move(received), .at_switch = true});
  });
  say_sent(from, *frame, nb_copies);
}

/// To each port it is for.
void Lab::switch_frame(Party& from, const FramePtr& frame) {
  --from.nb_to_switch;
  ++from.tx_switched;
  const wire::EthHdr eth = header_of(*frame);
  if (eth.src != kServerMac && (eth.dst == kServerMac || eth.dst == kBroadcast))
    carry(server_, frame);
  for (const auto& memtap : memtaps_)
    if (eth.src != memtap->mac && (eth.dst == memtap->mac || eth.dst.is_multicast()))
      carry(*memtap, frame);
}

void Lab::carry(Party& to, const FramePtr& frame) {
  unsigned nb_copies = 0;
  to.down.carry(*frame, now_, prng_, [&](Nanos arrives, bool corrupted) {
    ++nb_copies;
    if (corrupted) say_lost(to, *frame, "gets damaged");
    FramePtr received = corrupted ? corrupt(*frame) : frame;
    if (received == nullptr) {
      ++to.rx_refused_by_card;
      return;
    }
    ++to.nb_under_way;
    add(arrives, {.party = &to, .frame = std::move(received)});
  });
  if (nb_copies != 1) say_lost(to, *frame, nb_copies == 0 ? "does not get" : "gets twice");
}

/// A bit of a page's data flips behind the card that checked the frame; any other damage that card
/// sees, and drops the frame. @return nullptr: that
FramePtr Lab::corrupt(const Bytes& frame) {
  wire::Frame parsed;
  if (wire::parse(payload_of(frame), parsed) != wire::Drop::kNone ||
      parsed.type != wire::FrameType::kPage)
    return nullptr;
  auto flipped = std::make_shared<Bytes>(frame);
  const std::size_t header =
      parsed.second_body.empty() ? wire::kPageHeaderBytes : wire::kPairHeaderBytes;
  const std::size_t bit = prng_.next() % ((frame.size() - header) * 8);
  (*flipped)[header + bit / 8] ^= std::byte{1} << (bit % 8);
  return flipped;
}

}  // namespace snowfabric::sim
