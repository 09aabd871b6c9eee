package compress

import "hash/crc32"

// The CRC-32 of RFC 1952 is arithmetic on polynomials over GF(2) modulo the
// generator, with the coefficient of x^0 in the highest bit. To append n bytes
// multiplies by x^(8n), so checksums of parts, and of any number of zeros, can be
// put together in log(n) steps.

const polynomialOne = 1 << 31

// multiply returns a*b modulo the generator.
func multiply(a, b uint32) uint32 {
	var product uint32
	for bit := uint32(polynomialOne); bit != 0; bit >>= 1 {
		if a&bit != 0 {
			product ^= b
		}
		if b&1 != 0 {
			b = b>>1 ^ crc32.IEEE
		} else {
			b >>= 1
		}
	}
	return product
}

// power returns x^(8n) modulo the generator.
func power(n int64) uint32 {
	result, square := uint32(polynomialOne), uint32(polynomialOne>>8)
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			result = multiply(result, square)
		}
		square = multiply(square, square)
	}
	return result
}

// combineCRC returns the checksum of a part with checksum a followed by one of n
// bytes with checksum b.
func combineCRC(a, b uint32, n int64) uint32 { return multiply(power(n), a) ^ b }

// zerosCRC returns the checksum of n zeros.
func zerosCRC(n int64) uint32 { return ^multiply(power(n), ^uint32(0)) }
