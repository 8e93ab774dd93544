package idempotencytest_test

// The flaws, and what must catch each of them. A name that no store knows would be
// a store without a flaw, which nothing catches.

var flawsOfStores = []catch{
	// Get
	{"Get returns another error", []string{"GetOfNothing"}},
	{"Get returns nothing and no error", []string{"GetOfNothing"}},
	{"Get returns a record in progress", []string{"ClaimInProgressHasNoRecord"}},
	{"Get ignores expiry", []string{"ExpiredRecordIsAbsent"}},
	{"Get ignores its context", []string{"CancelledContextIsSeen"}},
	{"Get hands out its own memory", []string{"RecordsAreCopies", "CompleteTakesACopy"}},

	// Watch
	{"Watch is not told of completions", []string{"Watch"}},
	{"Watch is not told of releases", []string{"Watch"}},
	{"Watch hands out a closed channel", []string{"Watch"}},

	// Put
	{"Put merges", []string{"PutReplaces"}},
	{"Put keeps the tombstone", []string{"PutReplaces"}},
	{"Put leaves a claim in progress alone", []string{"PutOverAClaim"}},
	{"Put leaves the claim its token", []string{"PutOverAClaim"}},
	{"Put ignores default times", []string{"PutFillsInTimes"}},
	{"Put counts the default expiry from now", []string{"PutFillsInTimes"}},
	{"Put fills in the caller's record", []string{"PutFillsInTimes"}},
	{"Put keeps the caller's record", []string{"RecordsAreCopies"}},
	{"Put accepts nil", []string{"PutRefusesNonsense"}},
	{"Put accepts a record without an org", []string{"PutRefusesNonsense"}},
	{"Put accepts a record without a key", []string{"PutRefusesNonsense"}},
	{"Put ignores its context", []string{"CancelledContextIsSeen"}},

	// Keys and tenants
	{"rows keyed by key alone", []string{"TenantsNeverMeet", "ClaimsOfTenantsNeverMeet"}},
	{"keys without upper case", []string{"KeysAreExact", "ClaimInFlight"}},
	{"keys trimmed", []string{"KeysAreExact", "ClaimInFlight"}},
	{"keys cut at 255 bytes", []string{"KeysAreExact"}},
	{"Complete ignores the org", []string{"ClaimsOfTenantsNeverMeet"}},
	{"Release ignores the org", []string{"ClaimsOfTenantsNeverMeet"}},
	{"Extend ignores the org", []string{"ClaimsOfTenantsNeverMeet"}},

	// Payloads
	{"loses the status", []string{"PutThenGet", "ClaimCompleteReplay"}},
	{"loses the body", []string{"PutThenGet", "ClaimCompleteReplay"}},
	{"truncates bodies at 64 KiB", []string{"LargePayload"}},
	{"bodies must be valid UTF-8", []string{"OddPayloads"}},
	{"bodies end at a zero byte", []string{"OddPayloads"}},
	{"trims bodies", []string{"OddPayloads"}},
	{"loses the headers", []string{"PutThenGet", "ClaimCompleteReplay"}},
	{"loses AppendedHeaders", []string{"PutThenGet", "ClaimCompleteReplay"}},
	{"appends every header", []string{"PutThenGet", "ClaimCompleteReplay"}},
	{"keeps one value a header", []string{"PutThenGet", "ClaimCompleteReplay"}},
	{"sorts the values of a header", []string{"PutThenGet", "ClaimCompleteReplay"}},
	{"turns round the values of a header", []string{"PutThenGet", "ClaimCompleteReplay"}},
	{"drops values that repeat", []string{"PutThenGet", "ClaimCompleteReplay"}},
	{"joins the values with commas", []string{"PutThenGet", "ClaimCompleteReplay"}},
	{"joins the values with spaces", []string{"PutThenGet", "ClaimCompleteReplay"}},
	{"drops headers without values", []string{"PutThenGet", "ClaimCompleteReplay"}},
	{"drops empty values", []string{"OddPayloads"}},
	{"header values must be valid UTF-8", []string{"OddPayloads"}},
	{"writes header names in one form", []string{"OddPayloads"}},
	{"writes fingerprints in lower case", []string{"OddPayloads"}},
	{"loses tombstones", []string{"Tombstone", "PutReplaces"}},

	// Claim
	{"claims an absent key by get-then-insert", []string{"ConcurrentClaimsHaveOneWinner"}},
	{"takes over by get-then-update", []string{"ConcurrentTakeOversHaveOne"}},
	{"claim ignores the fingerprint", []string{"ClaimMismatch"}},
	{"claim compares the fingerprint of completed records only", []string{"ClaimMismatch"}},
	{"claim compares the fingerprint of claims in progress only", []string{"ClaimMismatch"}},
	{"claim compares the fingerprint after the take-over", []string{"ClaimMismatchOnLapsedLease"}},
	{"in flight taken over before the lease lapses", []string{"ClaimInFlight"}},
	{"lapsed lease never taken over", []string{"ClaimTakesOverLapsedLease"}},
	{"claims of any lease last 30 seconds", []string{"ClaimOutlivesExpiry"}},
	{"Refuse ignored", []string{"ClaimRefusesLapsedLease"}},
	{"attempt always 1", []string{"ClaimTakesOverLapsedLease"}},
	{"a take-over keeps the first claim's times", []string{"TakeOverHasTermsOfItsOwn"}},
	{"expired record replayed", []string{"ClaimAfterExpiry"}},
	{"attempts counted on after expiry", []string{"ClaimAfterExpiry"}},
	{"a claim of an expired record leaves it completed", []string{"ClaimAfterExpiry"}},
	{"expired but running claim absent", []string{"ClaimOutlivesExpiry"}},
	{"expired and lapsed claim not absent", []string{"ClaimAfterInterruptionExpired"}},
	{"a repeated claim is in flight", []string{"ClaimRepeated"}},
	{"a repeated claim is another attempt", []string{"ClaimRepeated"}},
	{"a repeated claim after the lapse is another attempt", []string{"ClaimRepeated"}},
	{"a repeated claim after the completion runs again", []string{"ClaimRepeated"}},
	{"Claim returns no record", []string{"ClaimCompleteReplay"}},
	{"Claim returns the record without its headers", []string{"ClaimCompleteReplay"}},
	{"Claim ignores its context", []string{"ClaimsSeeCancelledContext"}},

	// Complete
	{"token not checked at Complete", []string{"StaleTokenChangesNothing"}},
	{"Complete looks and then writes", []string{"ConcurrentEndAndTakeOver"}},
	{"Complete not repeatable", []string{"CompleteMayBeRepeated"}},
	{"Complete refused after the lapse", []string{"CompleteAfterLapse"}},
	{"Complete takes the fingerprint from the record", []string{"CompleteKeepsTermsOfTheClaim"}},
	{"Complete takes CreatedAt from the record", []string{"CompleteKeepsTermsOfTheClaim"}},
	{"Complete takes ExpiresAt from the record", []string{"CompleteKeepsTermsOfTheClaim"}},
	{"Complete counts the times from the completion", []string{"CompleteKeepsTermsOfTheClaim"}},
	{"Complete keeps the caller's slices", []string{"CompleteTakesACopy"}},
	{"Complete changes the caller's record", []string{"CompleteTakesACopy"}},
	{"Complete ignores its context", []string{"ClaimsSeeCancelledContext"}},

	// Release
	{"token not checked at Release", []string{"StaleTokenChangesNothing"}},
	{"Release looks and then writes", []string{"ConcurrentEndAndTakeOver"}},
	{"Release does nothing", []string{"ClaimReleased"}},
	{"Release of a first attempt only ends its lease", []string{"ClaimReleased"}},
	{"Release refused after the lapse", []string{"ReleaseAfterLapse"}},
	{"Release deletes a completed record", []string{"CompletedRecordIsNotReleased"}},
	{"Release after a take-over forgets the attempts", []string{"ReleaseAfterTakeOver"}},
	{"Release after a take-over leaves the lease", []string{"ReleaseAfterTakeOver"}},
	{"Release after a take-over leaves the token", []string{"ReleaseAfterTakeOver"}},
	{"Release ignores its context", []string{"ClaimsSeeCancelledContext"}},

	// Extend
	{"token not checked at Extend", []string{"StaleTokenChangesNothing"}},
	{"Extend looks and then writes", []string{"ConcurrentEndAndTakeOver"}},
	{"Extend does nothing", []string{"ExtendKeepsTheLease", "ExtendAfterLapse"}},
	{"Extend counts from the end of the lease", []string{"ExtendKeepsTheLease"}},
	{"Extend never shortens", []string{"ExtendKeepsTheLease"}},
	{"Extend refused after the lapse", []string{"ExtendAfterLapse"}},
	{"Extend of a completed record succeeds", []string{"CompletedRecordIsNotReleased"}},
	{"Extend ignores its context", []string{"ClaimsSeeCancelledContext"}},

	// Steps
	{"token not checked at LoadStep", []string{"StaleTokenHasNoSteps"}},
	{"token not checked at SaveStep", []string{"StaleTokenHasNoSteps"}},
	{"a completed record takes steps", []string{"CompletedRecordTakesNoSteps"}},
	{"steps ignore the org", []string{"StepsOfTenantsAndKeysNeverMeet"}},
	{"step names trimmed", []string{"StepSavedIsLoaded"}},
	{"LoadStep ignores its context", []string{"StepsSeeCancelledContext"}},
	{"SaveStep ignores its context", []string{"StepsSeeCancelledContext"}},
	{"SaveStep looks and then writes", []string{"ConcurrentSavesHaveOneWinner", "ConcurrentSaveAndTakeOver"}},
	{"SaveStep returns what it was given", []string{"StepOfTheFirstStays"}},
	{"the last step saved wins", []string{"StepOfTheFirstStays"}},
	{"SaveStep keeps the caller's result", []string{"StepTakesACopy"}},
	{"a take-over loses the steps", []string{"StepIsSeenAfterTakeOver"}},
	{"steps keep their first expiry", []string{"StepsMoveOnWithTheRecord"}},
	{"steps outlive their record", []string{"StepsEndWithTheRecord", "StepsOfAnotherFingerprint"}},
	{"steps outlive a Put", []string{"StepsEndWithAPut"}},
	{"Release forgets the steps", []string{"ReleaseKeepsSteps", "ConcurrentSaveAndRelease"}},

	{"ErrLeaseLost not wrapped", []string{"StaleTokenChangesNothing", "CompletedRecordIsNotReleased"}},
}

var flawsOfPlainStores = []catch{
	{"rows keyed by key alone", []string{"TenantsNeverMeet"}},
	{"Get ignores expiry", []string{"ExpiredRecordIsAbsent"}},
	{"Get hands out its own memory", []string{"RecordsAreCopies"}},
	{"Put keeps the caller's record", []string{"RecordsAreCopies"}},
	{"Put merges", []string{"PutReplaces"}},
	{"loses the body", []string{"PutThenGet"}},
}

var flawsUnderMiddleware = []catch{
	{"rows keyed by key alone", []string{"TenantsShareNoKeys"}},
	{"claims an absent key by get-then-insert", []string{"ConcurrentDuplicates"}},
	{"in flight taken over before the lease lapses", []string{"InFlight"}},
	{"claim ignores the fingerprint", []string{"Mismatch", "MismatchInFlight"}},
	{"expired record replayed", []string{"ExpiredRecordRunsAgain"}},
	{"a repeated claim is in flight", []string{"ClaimAnswerLost"}},
	{"lapsed lease never taken over", []string{"TakeOverThatFails"}},
	{"attempt always 1", []string{"TakeOver", "TakeOverThatFails"}},
	{"Refuse ignored", []string{"InterruptedRefused"}},
	{"token not checked at Complete", []string{"TakeOver"}},
	{"Release does nothing", []string{"StatusesThatAreNotStored"}},
	{"Release after a take-over forgets the attempts", []string{"TakeOverThatFails"}},
	{"loses the body", []string{"Replay"}},
	{"loses the headers", []string{"Replay", "ReplayOfNothing"}},
	{"keeps one value a header", []string{"Replay"}},
	{"loses AppendedHeaders", []string{"OuterHeadersAreNotStored"}},
	{"drops headers without values", []string{"OuterHeadersAreNotStored"}},
	{"loses tombstones", []string{"LargeResponse"}},
}

var flawsOfPlainStoresUnderMiddleware = []catch{
	{"rows keyed by key alone", []string{"TenantsShareNoKeys"}},
	{"loses the body", []string{"Replay"}},
	{"loses tombstones", []string{"LargeResponse"}},
}
