package xz

// The LZMA coder: an adaptive binary range coder over literals and matches, as
// in the LZMA specification of the LZMA SDK (lzma-specification.txt).
const (
	states        = 16 // what the last few symbols were; 12 are in use
	literalStates = 7  // in states below, the last one was a literal

	posStatesMax = 1 << 4
	minMatch     = 2
	maxLcLp      = 4 // LZMA2's limit of literal context plus position bits

	probOne  = 1 << 11 // a probability of 1
	probInit = probOne / 2
	moveBits = 5
	topValue = 1 << 24

	// maxSymbolInput bounds the bytes the range coder reads for one symbol.
	maxSymbolInput = 32
)

type lengthProbs struct {
	choice, choice2 uint16
	low, mid        [posStatesMax][8]uint16
	high            [256]uint16
}

// lzma is the state that outlives an LZMA2 chunk.
type lzma struct {
	rep    [4]uint32 // the last distances, minus one
	state  uint32
	lc     uint32
	lpMask uint32
	pbMask uint32

	isMatch    [states][posStatesMax]uint16
	isRep      [states]uint16
	isRep0     [states]uint16 // 0: the last distance
	isRep1     [states]uint16
	isRep2     [states]uint16
	isRep0Long [states][posStatesMax]uint16
	distSlot   [4][64]uint16
	distLow    [128]uint16 // reverse trees of slots 4 to 13, each from its base
	distAlign  [16]uint16
	length     lengthProbs
	repLength  lengthProbs
	literal    [1 << maxLcLp][0x300]uint16
}

// reset forgets all statistics.
func (d *lzma) reset() {
	d.rep = [4]uint32{}
	d.state = 0
	fill := func(p []uint16) {
		for i := range p {
			p[i] = probInit
		}
	}
	for i := range d.isMatch {
		fill(d.isMatch[i][:])
		fill(d.isRep0Long[i][:])
	}
	fill(d.isRep[:])
	fill(d.isRep0[:])
	fill(d.isRep1[:])
	fill(d.isRep2[:])
	for i := range d.distSlot {
		fill(d.distSlot[i][:])
	}
	fill(d.distLow[:])
	fill(d.distAlign[:])
	for _, l := range []*lengthProbs{&d.length, &d.repLength} {
		l.choice, l.choice2 = probInit, probInit
		for i := range l.low {
			fill(l.low[i][:])
			fill(l.mid[i][:])
		}
		fill(l.high[:])
	}
	for i := range d.literal {
		fill(d.literal[i][:])
	}
}

// setProps sets the properties from their byte, (pb*5+lp)*9+lc, and reports
// whether it is valid.
func (d *lzma) setProps(b byte) bool {
	if b >= 9*5*5 {
		return false
	}
	lc, lp, pb := uint32(b%9), uint32(b/9%5), uint32(b/45)
	if lc+lp > maxLcLp {
		return false
	}
	d.lc, d.lpMask, d.pbMask = lc, 1<<lp-1, 1<<pb-1
	return true
}

// afterLiteral is the state after a literal, by the one before.
var afterLiteral = [states]uint8{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 4, 5}

// rangeCoder is the state of the range decoder within a chunk. It is passed by
// value so that the compiler keeps it in registers.
type rangeCoder struct {
	in   *chunk
	pos  int
	rng  uint32
	code uint32
}

// chunk holds the bytes of an LZMA2 chunk; what follows them does not matter.
type chunk [1<<16 + maxSymbolInput]byte

// bit decodes a bit whose probability of being 0 is *p.
func (rc rangeCoder) bit(p *uint16) (rangeCoder, bool) {
	if rc.rng < topValue {
		rc.rng <<= 8
		rc.code = rc.code<<8 | uint32(rc.in[rc.pos])
		rc.pos++
	}
	bound := rc.rng >> 11 * uint32(*p)
	if rc.code < bound {
		rc.rng = bound
		*p += (probOne - *p) >> moveBits
		return rc, false
	}
	rc.rng -= bound
	rc.code -= bound
	*p -= *p >> moveBits
	return rc, true
}

// tree decodes a symbol from its most significant bit on; the result begins
// with another 1.
func (rc rangeCoder) tree(probs []uint16) (rangeCoder, uint32) {
	symbol := uint32(1)
	for symbol < uint32(len(probs)) {
		var one bool
		if rc, one = rc.bit(&probs[symbol]); one {
			symbol = symbol<<1 | 1
		} else {
			symbol <<= 1
		}
	}
	return rc, symbol - uint32(len(probs))
}

// reverseTree decodes a symbol from its least significant bit on.
func (rc rangeCoder) reverseTree(probs []uint16, bits uint32) (rangeCoder, uint32) {
	var value uint32
	symbol := uint32(1)
	for i := uint32(0); i < bits; i++ {
		var one bool
		if rc, one = rc.bit(&probs[symbol]); one {
			symbol = symbol<<1 | 1
			value |= 1 << i
		} else {
			symbol <<= 1
		}
	}
	return rc, value
}

// direct decodes bits without statistics.
func (rc rangeCoder) direct(bits uint32) (rangeCoder, uint32) {
	var value uint32
	for ; bits > 0; bits-- {
		if rc.rng < topValue {
			rc.rng <<= 8
			rc.code = rc.code<<8 | uint32(rc.in[rc.pos])
			rc.pos++
		}
		rc.rng >>= 1
		rc.code -= rc.rng
		zero := uint32(int32(rc.code) >> 31) // all ones if the bit is 0
		rc.code += rc.rng & zero
		value = value<<1 + 1 + zero
	}
	return rc, value
}

// literalAfterMatch decodes a literal with the byte that would have continued
// the match as context, as long as its bits agree.
func (rc rangeCoder) literalAfterMatch(probs *[0x300]uint16, match uint32) (rangeCoder, byte) {
	symbol := uint32(1)
	for symbol < 0x100 {
		match <<= 1
		matchBit := match & 0x100
		var one bool
		if rc, one = rc.bit(&probs[(0x100+matchBit+symbol)&0x3ff]); one {
			symbol = symbol<<1 | 1
			if matchBit == 0 {
				break
			}
		} else {
			symbol <<= 1
			if matchBit != 0 {
				break
			}
		}
	}
	for symbol < 0x100 {
		var one bool
		if rc, one = rc.bit(&probs[symbol]); one {
			symbol = symbol<<1 | 1
		} else {
			symbol <<= 1
		}
	}
	return rc, byte(symbol)
}

func (rc rangeCoder) length(l *lengthProbs, posState uint32) (rangeCoder, int) {
	var long bool
	var n uint32
	if rc, long = rc.bit(&l.choice); !long {
		rc, n = rc.tree(l.low[posState][:])
		return rc, minMatch + int(n)
	}
	if rc, long = rc.bit(&l.choice2); !long {
		rc, n = rc.tree(l.mid[posState][:])
		return rc, minMatch + 8 + int(n)
	}
	rc, n = rc.tree(l.high[:])
	return rc, minMatch + 16 + int(n)
}

// distance decodes the distance of a match, minus one.
func (d *lzma) distance(rc rangeCoder, length int) (rangeCoder, uint32) {
	rc, slot := rc.tree(d.distSlot[min(length-minMatch, 3)][:])
	if slot < 4 {
		return rc, slot
	}
	bits := slot>>1 - 1
	dist := (2 | slot&1) << bits
	if slot < 14 {
		rc, low := rc.reverseTree(d.distLow[dist-slot:], bits)
		return rc, dist + low
	}
	rc, high := rc.direct(bits - 4)
	rc, low := rc.reverseTree(d.distAlign[:], 4)
	return rc, dist + high<<4 + low
}

// decode decodes a chunk of size bytes to the end of out, of which pos bytes
// are there, the dictionary of at most dictSize bytes first. It reports whether
// the chunk is valid.
func (d *lzma) decode(out []byte, pos int, dictSize uint32, in *chunk, size int) bool {
	if size < 5 || in[0] != 0 {
		return false
	}
	rc := rangeCoder{in: in, pos: 5, rng: 1<<32 - 1,
		code: uint32(in[1])<<24 | uint32(in[2])<<16 | uint32(in[3])<<8 | uint32(in[4])}
	state := d.state % states // the remainder spares checks of bounds, here and below
	lcShift := (8 - d.lc) % 32
	lc := d.lc % 32
	var one bool
	for pos < len(out) {
		if rc.pos > size {
			return false
		}
		posState := uint32(pos) & d.pbMask % posStatesMax
		if rc, one = rc.bit(&d.isMatch[state][posState]); !one {
			var before byte
			if pos > 0 {
				before = out[pos-1]
			}
			probs := &d.literal[((uint32(pos)&d.lpMask)<<lc+uint32(before)>>lcShift)&(1<<maxLcLp-1)]
			if state < literalStates {
				symbol := uint32(1)
				for symbol < 0x100 {
					if rc, one = rc.bit(&probs[symbol]); one {
						symbol = symbol<<1 | 1
					} else {
						symbol <<= 1
					}
				}
				out[pos] = byte(symbol)
			} else {
				if int64(d.rep[0]) >= int64(pos) {
					return false
				}
				rc, out[pos] = rc.literalAfterMatch(probs, uint32(out[pos-int(d.rep[0])-1]))
			}
			pos++
			state = uint32(afterLiteral[state]) % states
			continue
		}

		var length int
		if rc, one = rc.bit(&d.isRep[state]); !one {
			rc, length = rc.length(&d.length, posState)
			d.rep[3], d.rep[2], d.rep[1] = d.rep[2], d.rep[1], d.rep[0]
			rc, d.rep[0] = d.distance(rc, length)
			state = after(state, 7) % states
		} else {
			if rc, one = rc.bit(&d.isRep0[state]); !one {
				if rc, one = rc.bit(&d.isRep0Long[state][posState]); !one {
					length = 1
				}
			} else {
				dist := d.rep[1]
				if rc, one = rc.bit(&d.isRep1[state]); one {
					if rc, one = rc.bit(&d.isRep2[state]); one {
						dist, d.rep[3] = d.rep[3], d.rep[2]
					} else {
						dist = d.rep[2]
					}
					d.rep[2] = d.rep[1]
				}
				d.rep[1], d.rep[0] = d.rep[0], dist
			}
			if length == 1 {
				state = after(state, 9) % states
			} else {
				rc, length = rc.length(&d.repLength, posState)
				state = after(state, 8) % states
			}
		}
		if int64(d.rep[0]) >= int64(pos) || d.rep[0] >= dictSize || length > len(out)-pos {
			return false
		}
		repeat(out[:pos+length], pos, int(d.rep[0])+1)
		pos += length
	}
	d.state = state
	if rc.rng < topValue {
		rc.code = rc.code<<8 | uint32(in[rc.pos])
		rc.pos++
	}
	return rc.pos == size && rc.code == 0
}

// after returns the state after a match: one of two, by whether the symbol
// before it was a literal.
func after(state, afterLiteral uint32) uint32 {
	if state < literalStates {
		return afterLiteral
	}
	if afterLiteral == 7 {
		return 10
	}
	return 11
}

// repeat fills out from pos on with what is dist bytes before.
func repeat(out []byte, pos, dist int) {
	to := out[pos:]
	from := out[pos-dist:]
	if len(to) >= 16 && dist >= len(to) {
		copy(to, from)
		return
	}
	from = from[:len(to)]
	for i := range to {
		to[i] = from[i]
	}
}
