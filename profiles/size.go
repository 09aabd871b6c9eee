package profiles

import "github.com/kilnhq/kiln/internal/bytesize"

// Size is a number of bytes.
type Size = bytesize.Size

// Units of Size.
const (
	KiB = bytesize.KiB
	MiB = bytesize.MiB
	GiB = bytesize.GiB
	TiB = bytesize.TiB
)
