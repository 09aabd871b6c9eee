package timesync

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

const packetSize = 48

// Modes of packets.
const (
	modeClient = 3
	modeServer = 4
)

const (
	maxStratum = 15
	// maxDistance is MAXDIST of RFC 5905: a server that may be wrong by more is
	// of no use.
	maxDistance = 1500 * time.Millisecond
	// leapUnknown says that the server is not synchronized itself.
	leapUnknown = 3
)

// A reply is what a server's packet says.
type reply struct {
	leap, mode, stratum   byte
	rootDelay, dispersion time.Duration
	reference             [4]byte
	origin                uint64 // what the request had
	receive, transmit     time.Time
}

// request returns a client's packet. Its transmit time, which the server sends
// back, is a number that nobody can guess, not the time: so only one who sees
// the request can answer it.
func request(cookie uint64) []byte {
	b := make([]byte, packetSize)
	b[0] = 4<<3 | modeClient
	binary.BigEndian.PutUint64(b[40:], cookie)
	return b
}

// parse reads a packet. What follows the first 48 bytes, extensions and
// authentication, is passed over.
func parse(b []byte) (reply, error) {
	if len(b) < packetSize {
		return reply{}, fmt.Errorf("NTP packet of %d bytes, at least %d are wanted", len(b), packetSize)
	}
	if v := b[0] >> 3 & 7; v < 1 || v > 4 {
		return reply{}, fmt.Errorf("NTP packet of version %d, where 4 is wanted", v)
	}
	short := func(at int) time.Duration {
		return time.Duration(uint64(binary.BigEndian.Uint32(b[at:])) * uint64(time.Second) >> 16)
	}
	return reply{
		leap: b[0] >> 6, mode: b[0] & 7, stratum: b[1],
		rootDelay: short(4), dispersion: short(8), reference: [4]byte(b[12:]),
		origin: binary.BigEndian.Uint64(b[24:]), receive: fromTimestamp(binary.BigEndian.Uint64(b[32:])), transmit: fromTimestamp(binary.BigEndian.Uint64(b[40:])),
	}, nil
}

// fromTimestamp returns the time of an NTP timestamp: 32 bits of seconds since
// 1900 and 32 of their fraction. Seconds without the upper bit are of the next
// era, which begins in 2036 (RFC 4330, section 3).
func fromTimestamp(t uint64) time.Time {
	const epoch = 2208988800 // of Unix
	seconds := int64(t >> 32)
	if t>>63 == 0 {
		seconds += 1 << 32
	}
	return time.Unix(seconds-epoch, int64(t&0xffffffff*uint64(time.Second)>>32)).UTC()
}

// A KissError is a server's wish, RFC 5905 section 7.4.
type KissError struct {
	Code string // "DENY", "RSTR": ask no more; "RATE": ask less often
}

func (e *KissError) Error() string {
	switch e.Code {
	case "DENY", "RSTR":
		return "the server does not want us to ask (" + e.Code + "); configure another"
	case "RATE":
		return "the server wants us to ask less often (RATE)"
	}
	return "the server has no time for us (" + e.Code + ")"
}

var errNotSynchronized = errors.New("the server is not synchronized itself")

// check says why the time of a reply must not be used.
func (r *reply) check() error {
	if r.stratum == 0 {
		code := strings.Map(func(c rune) rune {
			if c < 'A' || c > 'Z' {
				return -1
			}
			return c
		}, string(r.reference[:]))
		return &KissError{code}
	}
	if r.leap == leapUnknown || r.stratum > maxStratum || r.transmit.Equal(fromTimestamp(0)) {
		return errNotSynchronized
	}
	return nil
}
