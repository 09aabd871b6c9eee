// Package slots changes which system an installed disk boots.
//
// Each disk has two slots, A and B, that hold a complete set of boot assets each.
// One of them is confirmed: the system in there has been up before. An upgrade
// writes the other slot, which is then on trial: boot loaders start it a few
// times, and fall back to the confirmed slot unless it is confirmed by then.
package slots
