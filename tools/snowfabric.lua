-- SPDX-License-Identifier: BSD-3-Clause
-- Wireshark dissector for the page fabric, EtherType 0x88B5: docs/wire-format.md.
--   tshark -X lua_script:tools/snowfabric.lua -r capture.pcapng
-- A frame that a receiver would drop has an expert item and the field snowfabric.drop, which is the
-- end of the receiver's counter's name: rx_drop_<snowfabric.drop>.

local ETHERTYPE, MAGIC, VERSION = 0x88b5, 0x5346, 1
local SEALED_MAGIC, SEAL_HEADER_BYTES, TAG_BYTES = 0x5358, 32, 16
local HEADER_BYTES, PAGE_BYTES, WANT_BYTES, RANGE_BYTES = 28, 4096, 16, 12
local MAX_FRAGMENTS, MAX_WANTS, MAX_WANT_PAGES, MAX_RANGES, MAX_RANGE_PAGES = 8, 64, 256, 64, 4096
local HELLO, WELCOME, REQUEST, PAGE, ZEROS, ABSENT, BYE = 1, 2, 3, 4, 5, 6, 7
local TYPES = { [HELLO] = "HELLO", [WELCOME] = "WELCOME", [REQUEST] = "REQUEST", [PAGE] = "PAGE",
                [ZEROS] = "ZEROS", [ABSENT] = "ABSENT", [BYE] = "BYE" }
local PRIORITIES = { [0] = "demand", [1] = "prefetch" }

local proto = Proto("snowfabric", "Snowfabric Page Fabric")
local f = {  -- common header
  magic = ProtoField.uint16("snowfabric.magic", "Magic", base.HEX),
  version = ProtoField.uint8("snowfabric.version", "Version"),
  type = ProtoField.uint8("snowfabric.type", "Type", base.DEC, TYPES),
  flags = ProtoField.uint8("snowfabric.flags", "Flags", base.HEX),
  sequenced = ProtoField.bool("snowfabric.flags.sequenced", "Sequenced", 8, nil, 0x01),
  sibling = ProtoField.bool("snowfabric.flags.sibling", "Sibling", 8, nil, 0x02),
  pairs = ProtoField.bool("snowfabric.flags.pairs", "Takes two pages a frame", 8, nil, 0x04),
  space = ProtoField.uint8("snowfabric.space", "Page space"),
  payload_len = ProtoField.uint16("snowfabric.payload_len", "Payload length"),
  image_id = ProtoField.uint64("snowfabric.image_id", "Image id", base.HEX),
  epoch = ProtoField.uint32("snowfabric.epoch", "Epoch"),
  incarnation = ProtoField.uint32("snowfabric.incarnation", "Incarnation", base.HEX),
  seq = ProtoField.uint32("snowfabric.seq", "Sequence number"),
  -- bodies
  client_id = ProtoField.uint64("snowfabric.client_id", "Client id", base.HEX),
  mtu_bytes = ProtoField.uint16("snowfabric.mtu_bytes", "MTU"),
  nb_pages = ProtoField.uint64("snowfabric.nb_pages", "Pages of the image"),
  report_interval_us = ProtoField.uint32("snowfabric.report_interval_us", "Report interval (us)"),
  nb_fragments = ProtoField.uint8("snowfabric.nb_fragments", "Fragments a page"),
  clock_us = ProtoField.uint64("snowfabric.report.clock_us", "Client clock (us)"),
  rx_bytes = ProtoField.uint64("snowfabric.report.rx_bytes", "Bytes received"),
  rx_frames = ProtoField.uint32("snowfabric.report.rx_frames", "Frames received"),
  lost = ProtoField.uint32("snowfabric.report.lost", "Frames lost"),
  srtt_us = ProtoField.uint32("snowfabric.report.srtt_us", "Smoothed round trip (us)"),
  rttvar_us = ProtoField.uint32("snowfabric.report.rttvar_us", "Round trip variation (us)"),
  want_first = ProtoField.uint64("snowfabric.want.first", "First page", base.HEX),
  want_nb_pages = ProtoField.uint16("snowfabric.want.nb_pages", "Pages"),
  want_priority = ProtoField.uint8("snowfabric.want.priority", "Priority", base.DEC, PRIORITIES),
  want_flags = ProtoField.uint8("snowfabric.want.flags", "Flags", base.HEX),
  want_retry = ProtoField.bool("snowfabric.want.flags.retry", "Retry", 8, nil, 0x01),
  want_fragments = ProtoField.uint8("snowfabric.want.fragments", "Missing fragments", base.HEX),
  gfn = ProtoField.uint64("snowfabric.gfn", "Page (gfn)", base.HEX),
  crc32c = ProtoField.uint32("snowfabric.crc32c", "CRC32C of the page", base.HEX),
  fragment = ProtoField.uint8("snowfabric.fragment", "Fragment"),
  data = ProtoField.bytes("snowfabric.data", "Page data"),
  range_first = ProtoField.uint64("snowfabric.range.first", "First page", base.HEX),
  range_nb_pages = ProtoField.uint32("snowfabric.range.nb_pages", "Pages"),
  reserved = ProtoField.bytes("snowfabric.reserved", "Reserved"),
  sealed_length = ProtoField.uint16("snowfabric.sealed.length", "Bytes of ciphertext"),
  session = ProtoField.bytes("snowfabric.sealed.session", "Session of the sender"),
  counter = ProtoField.uint64("snowfabric.sealed.counter", "Counter of the sender"),
  ciphertext = ProtoField.bytes("snowfabric.sealed.ciphertext", "Ciphertext"),
  tag = ProtoField.bytes("snowfabric.sealed.tag", "Tag"),
  padding = ProtoField.bytes("snowfabric.padding", "Ethernet padding"),
  drop = ProtoField.string("snowfabric.drop", "Receivers drop it"),
}
proto.fields = f

local experts = {}
for reason, text in pairs({ truncated = "Frame is truncated", bad_magic = "Magic is not 0x5346",
                            bad_version = "Unknown version", bad_type = "Unknown frame type",
                            bad_length = "Payload length does not fit the type",
                            bad_field = "Field outside its range" }) do
  experts[reason] = ProtoExpert.new("snowfabric.expert." .. reason, text, expert.group.MALFORMED,
                                    expert.severity.ERROR)
end
proto.experts = experts

-- Marks the frame as one that receivers drop; `detail` says what is wrong with it.
local function drop(tree, pinfo, reason, detail)
  tree:add(f.drop, reason):set_generated()
  tree:add_proto_expert_info(experts[reason], detail)
  pinfo.cols.info:append(" [" .. reason .. ": " .. detail .. "]")
end

local function hex(range)  -- a 64-bit number without leading zeros
  return "0x" .. (range:uint64():tohex():gsub("^0+(%x)", "%1"))
end

-- Whether a run of pages is inside its bounds: 1 .. max pages, and its end fits 64 bits.
local function valid_run(first, nb_pages, max)
  return nb_pages >= 1 and nb_pages <= max and
         first:uint64() <= UInt64(0xffffffff, 0xffffffff) - UInt64(nb_pages)
end

local function fragment_bytes(fragment, nb_fragments)
  local stride = math.ceil(math.ceil(PAGE_BYTES / nb_fragments) / 8) * 8
  return math.min((fragment + 1) * stride, PAGE_BYTES) - fragment * stride
end

-- Each body function gets exactly payload_len bytes; it returns nothing, or why the frame is bad.
local bodies = {}

bodies[HELLO] = function(body, tree, info)
  if body:len() ~= 16 then return "bad_length", "HELLO is 16 bytes" end
  tree:add(f.client_id, body(0, 8))
  tree:add(f.mtu_bytes, body(8, 2))
  tree:add(f.reserved, body(10, 6))
  info:append(" client=" .. hex(body(0, 8)))
  if body(0, 8):uint64() == UInt64(0) then return "bad_field", "client id 0" end
end

bodies[WELCOME] = function(body, tree, info)
  if body:len() ~= 24 then return "bad_length", "WELCOME is 24 bytes" end
  tree:add(f.client_id, body(0, 8))
  tree:add(f.nb_pages, body(8, 8))
  tree:add(f.report_interval_us, body(16, 4))
  tree:add(f.mtu_bytes, body(20, 2))
  tree:add(f.nb_fragments, body(22, 1))
  tree:add(f.reserved, body(23, 1))
  info:append(" client=" .. hex(body(0, 8)) .. " pages=" .. tostring(body(8, 8):uint64()))
  local n = body(22, 1):uint()
  if n < 1 or n > MAX_FRAGMENTS then return "bad_field", "nb_fragments " .. n end
  if body(8, 4):uint() ~= 0 or body(12, 4):uint() == 0 then return "bad_field", "nb_pages" end
  if body(16, 4):uint() == 0 then return "bad_field", "report_interval_us 0" end
end

local function dissect_want(entry, tree)
  local first, nb_pages = entry(0, 8), entry(8, 2):uint()
  local item = tree:add(proto, entry, "Want " .. hex(first) .. "+" .. nb_pages)
  item:add(f.want_first, first)
  item:add(f.want_nb_pages, entry(8, 2))
  item:add(f.want_priority, entry(10, 1))
  item:add(f.want_flags, entry(11, 1)):add(f.want_retry, entry(11, 1))
  item:add(f.want_fragments, entry(12, 1))
  item:add(f.reserved, entry(13, 3))
  if not valid_run(first, nb_pages, MAX_WANT_PAGES) then return "bad_field", "pages of a want" end
  if not PRIORITIES[entry(10, 1):uint()] then return "bad_field", "priority of a want" end
  if entry(12, 1):uint() ~= 0 and nb_pages ~= 1 then return "bad_field", "fragments of a run" end
end

bodies[REQUEST] = function(body, tree, info)
  local wants_bytes = body:len() - 40
  if wants_bytes < 0 or wants_bytes % WANT_BYTES ~= 0 or wants_bytes > MAX_WANTS * WANT_BYTES then
    return "bad_length", "REQUEST is 40 bytes and up to 64 wants of 16"
  end
  tree:add(f.client_id, body(0, 8))
  local report = tree:add(proto, body(8, 32), "Report")
  report:add(f.clock_us, body(8, 8))
  report:add(f.rx_bytes, body(16, 8))
  report:add(f.rx_frames, body(24, 4))
  report:add(f.lost, body(28, 4))
  report:add(f.srtt_us, body(32, 4))
  report:add(f.rttvar_us, body(36, 4))
  info:append(" client=" .. hex(body(0, 8)) .. " wants=" .. wants_bytes / WANT_BYTES)
  if wants_bytes > 0 then
    info:append(" first=" .. hex(body(40, 8)) .. "+" .. body(48, 2):uint())
  end
  local why, detail
  if body(0, 8):uint64() == UInt64(0) then why, detail = "bad_field", "client id 0" end
  for at = 40, body:len() - 1, WANT_BYTES do
    local bad, text = dissect_want(body(at, WANT_BYTES), tree)
    if not why then why, detail = bad, text end
  end
  return why, detail
end

local function dissect_page(body, tree, info)
  tree:add(f.gfn, body(0, 8))
  tree:add(f.crc32c, body(8, 4))
  tree:add(f.fragment, body(12, 1))
  tree:add(f.nb_fragments, body(13, 1))
  tree:add(f.reserved, body(14, 2))
  info:append(" gfn=" .. hex(body(0, 8)))
  return body(12, 1):uint(), body(13, 1):uint()
end

bodies[PAGE] = function(body, tree, info)
  if body:len() < 16 then return "bad_length", "PAGE is at least 16 bytes" end
  local fragment, n = dissect_page(body(0, 16), tree, info)
  if n == 1 and body:len() == 2 * (16 + PAGE_BYTES) then
    local second_fragment, second_n = dissect_page(body(16, 16), tree, info)
    tree:add(f.data, body(32, PAGE_BYTES))
    tree:add(f.data, body(32 + PAGE_BYTES))
    if fragment == 0 and second_fragment == 0 and second_n == 1 then return end
    return "bad_field", "a fragment beside another page"
  end
  if body:len() > 16 then tree:add(f.data, body(16)) end
  if n > 1 then info:append(" frag " .. fragment + 1 .. "/" .. n) end
  if n < 1 or n > MAX_FRAGMENTS or fragment >= n then
    return "bad_field", "fragment " .. fragment .. " of " .. n
  end
  if body:len() - 16 ~= fragment_bytes(fragment, n) then
    return "bad_length", "this fragment has " .. fragment_bytes(fragment, n) .. " bytes of data"
  end
end

local function dissect_ranges(body, tree, info)
  if body:len() == 0 or body:len() % RANGE_BYTES ~= 0 or body:len() > MAX_RANGES * RANGE_BYTES then
    return "bad_length", "1 to 64 ranges of 12 bytes"
  end
  local why, detail
  for at = 0, body:len() - 1, RANGE_BYTES do
    local first, nb_pages = body(at, 8), body(at + 8, 4):uint()
    local item = tree:add(proto, body(at, RANGE_BYTES), "Range " .. hex(first) .. "+" .. nb_pages)
    item:add(f.range_first, first)
    item:add(f.range_nb_pages, body(at + 8, 4))
    if at < 3 * RANGE_BYTES then info:append(" " .. hex(first) .. "+" .. nb_pages) end
    if not valid_run(first, nb_pages, MAX_RANGE_PAGES) then
      why, detail = "bad_field", "pages of a range"
    end
  end
  if body:len() > 3 * RANGE_BYTES then info:append(" ...") end
  return why, detail
end
bodies[ZEROS] = dissect_ranges
bodies[ABSENT] = dissect_ranges

bodies[BYE] = function(body, tree, info)
  if body:len() ~= 8 then return "bad_length", "BYE is 8 bytes" end
  tree:add(f.client_id, body(0, 8))
  local server = body(0, 8):uint64() == UInt64(0)
  info:append(server and " server leaves" or (" client=" .. hex(body(0, 8))))
end

local function dissect_header(tvb, tree)
  tree:add(f.magic, tvb(0, 2))
  tree:add(f.version, tvb(2, 1))
  tree:add(f.type, tvb(3, 1))
  local flags = tree:add(f.flags, tvb(4, 1))
  flags:add(f.sequenced, tvb(4, 1))
  flags:add(f.sibling, tvb(4, 1))
  flags:add(f.pairs, tvb(4, 1))
  tree:add(f.space, tvb(5, 1))
  tree:add(f.payload_len, tvb(6, 2))
  tree:add(f.image_id, tvb(8, 8))
  tree:add(f.epoch, tvb(16, 4))
  tree:add(f.incarnation, tvb(20, 4))
  tree:add(f.seq, tvb(24, 4))
end

-- What is inside only the group's key tells.
local function dissect_sealed(tvb, pinfo, tree)
  pinfo.cols.info = "sealed"
  if tvb:len() < SEAL_HEADER_BYTES then
    return drop(tree, pinfo, "truncated", "the header of a sealed frame is 32 bytes")
  end
  tree:add(f.magic, tvb(0, 2))
  tree:add(f.version, tvb(2, 1))
  if tvb(2, 1):uint() ~= 1 then return drop(tree, pinfo, "bad_version", tostring(tvb(2, 1):uint())) end
  local length = tvb(4, 2):uint()
  local end_of_frame = SEAL_HEADER_BYTES + length + TAG_BYTES
  tree:add(f.sealed_length, tvb(4, 2))
  tree:add(f.session, tvb(8, 16))
  tree:add(f.counter, tvb(24, 8))
  pinfo.cols.info:append(" counter=" .. tostring(tvb(24, 8):uint64()))
  if end_of_frame > tvb:len() then
    return drop(tree, pinfo, "truncated", length .. " bytes of ciphertext are not there")
  end
  if length > 0 then tree:add(f.ciphertext, tvb(SEAL_HEADER_BYTES, length)) end
  tree:add(f.tag, tvb(SEAL_HEADER_BYTES + length, TAG_BYTES))
  if tvb:len() > end_of_frame then tree:add(f.padding, tvb(end_of_frame)) end
  return end_of_frame
end

function proto.dissector(tvb, pinfo, root)
  pinfo.cols.protocol = "SNOWFABRIC"
  local tree = root:add(proto, tvb())
  if tvb:len() >= 2 and tvb(0, 2):uint() == SEALED_MAGIC then return dissect_sealed(tvb, pinfo, tree) end
  local type = tvb:len() >= 4 and tvb(3, 1):uint()
  pinfo.cols.info = TYPES[type] or "?"
  if tvb:len() < HEADER_BYTES then
    return drop(tree, pinfo, "truncated", "the header is 28 bytes")
  end
  local magic, version = tvb(0, 2):uint(), tvb(2, 1):uint()
  if magic ~= MAGIC then
    tree:add(f.magic, tvb(0, 2))
    return drop(tree, pinfo, "bad_magic", string.format("0x%04x", magic))
  end
  if version ~= VERSION then  -- nothing behind it may be trusted
    tree:add(f.version, tvb(2, 1))
    return drop(tree, pinfo, "bad_version", tostring(version))
  end
  dissect_header(tvb, tree)
  local payload_len = tvb(6, 2):uint()
  local end_of_body = HEADER_BYTES + payload_len
  if end_of_body > tvb:len() then
    return drop(tree, pinfo, "truncated", payload_len .. " bytes of payload are not there")
  end
  if not bodies[type] then return drop(tree, pinfo, "bad_type", tostring(type)) end
  -- an empty range cannot be made at the end of a frame: a body of no bytes is wrong for every type
  if payload_len == 0 then return drop(tree, pinfo, "bad_length", "no body") end
  local why, detail = bodies[type](tvb(HEADER_BYTES, payload_len):tvb(), tree, pinfo.cols.info)
  if tvb(4, 1):uint() % 2 == 1 then pinfo.cols.info:append(" seq=" .. tvb(24, 4):uint()) end
  if tvb:len() > end_of_body then tree:add(f.padding, tvb(end_of_body)) end
  if why then drop(tree, pinfo, why, detail) end
  return end_of_body
end

DissectorTable.get("ethertype"):add(ETHERTYPE, proto)
