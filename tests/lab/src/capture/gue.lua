-- Generic UDP Encapsulation (draft-ietf-intarea-gue-09, section 3.1), version 0, which
-- tshark does not know: a header of four bytes and options, and the packet inside.
local gue = Proto("gue", "Generic UDP Encapsulation")
local inner = DissectorTable.get("ip.proto")

function gue.dissector(buffer, pinfo, tree)
  local header = 4 + 4 * buffer(0, 1):bitfield(3, 5)
  inner:try(buffer(1, 1):uint(), buffer(header):tvb(), pinfo, tree)
end

DissectorTable.get("udp.port"):add(6080, gue)
